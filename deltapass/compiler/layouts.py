"""Between stages 5 and 6: bodies that differ in input layout alone share the most used one.

A first block often reads a transposed view (a patch embedding) where the others read dense
tensors: the same code but for strides, and a compile of its own. A copy into the other layout,
once a call, saves that compile. Only for lowerings that do not promise bit-equal results: a
kernel may round otherwise on another layout.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import fx

from deltapass.compiler.outline import verify
from deltapass.graph.program import Body, Call, Program, TensorSpec

Representatives = Mapping[tuple[object, ...], Body]


def representatives(program: Program) -> Representatives:
    """For every body's key, the most used body that equals it up to the layout of inputs."""
    uses = Counter(call.body.key for call in program.calls)
    best: dict[tuple[object, ...], Body] = {}
    for call in program.calls:
        loose = _loose_key(call.body)
        known = best.get(loose)
        if known is None or uses[call.body.key] > uses[known.key]:
            best[loose] = call.body
    return {call.body.key: best[_loose_key(call.body)] for call in program.calls}


def share_layouts(program: Program, chosen: Representatives) -> Program:
    """Call the chosen body everywhere, on inputs copied into its layout.

    Before:                               After:
        h1 = block_0(h0, c)                   h0_laid_out = relayout(h0)
        h2 = block_1(h1, c)                   h1 = block_1(h0_laid_out, c)
                                              h2 = block_1(h1, c)
    """
    calls: list[Call] = []
    specs = dict(program.specs)
    for call in program.calls:
        body = chosen.get(call.body.key, call.body)
        inputs = []
        for name, wanted in zip(call.inputs, body.inputs, strict=True):
            taken = name
            if specs[name] != wanted:
                taken = f"{name}_laid_out"
                if taken not in specs:
                    copied = relayout_body(specs[name], wanted)
                    calls.append(
                        Call(label="relayout", body=copied, inputs=(name,), outputs=(taken,))
                    )
                    specs[taken] = wanted
            inputs.append(taken)
        calls.append(replace(call, body=body, inputs=tuple(inputs)))
    changed = replace(program, calls=tuple(calls), specs=specs)
    verify(changed)
    return changed


def relayout_body(given: TensorSpec, wanted: TensorSpec) -> Body:
    """A copy of a tensor in another layout."""
    graph = fx.Graph()
    value = graph.placeholder("value")
    place: dict[str, object] = {"dtype": wanted.dtype, "device": wanted.device}
    empty = graph.call_function(torch.empty_strided, (wanted.shape, wanted.stride), place)  # type: ignore[arg-type]
    graph.output((graph.call_method("copy_", (empty, value)),))
    return Body(
        name="relayout",
        module=fx.GraphModule(torch.nn.Module(), graph),
        key=("relayout", given, wanted),
        inputs=(given,),
        outputs=(wanted,),
    )


def _loose_key(body: Body) -> tuple[object, ...]:
    """The body's key without input strides. Output layouts stay: others read them."""
    loose = tuple((spec.shape, spec.dtype, spec.device) for spec in body.inputs)
    return (loose, body.key[1:], body.outputs)
