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

from deltapass.compiler.added_bodies import relayout_body
from deltapass.graph.keys import Key
from deltapass.graph.program import Body, Call, Program, TensorSpec
from deltapass.graph.verify import verify

Representatives = Mapping[tuple[object, ...], Body]


def representatives(program: Program) -> Representatives:
    """For every body's key, the most used body that equals it up to the layout of inputs."""
    uses = Counter(call.body.key for call in program.calls)
    bodies = {call.body.key: call.body for call in program.calls}
    loose = {key: _loose_key(body) for key, body in bodies.items()}
    best: dict[tuple[object, ...], Body] = {}
    for key, _ in uses.most_common():
        best.setdefault(loose[key], bodies[key])
    return {key: best[loose[key]] for key in bodies}


def share_layouts(program: Program, chosen: Representatives) -> Program:
    """Call the chosen body everywhere, on inputs copied into its layout.

    Before:                               After:
        h1 = block_0(h0, c)                   h0_laid_out_0 = relayout(h0)
        h2 = block_1(h1, c)                   h1 = block_1(h0_laid_out, c)
                                              h2 = block_1(h1, c)
    """
    calls: list[Call] = []
    specs = dict(program.specs)
    copies: dict[tuple[str, TensorSpec], str] = {}
    for call in program.calls:
        body = chosen.get(call.body.key, call.body)
        inputs = []
        for name, wanted in zip(call.inputs, body.inputs, strict=True):
            if specs[name] != wanted and (name, wanted) not in copies:
                copy = f"{name}_laid_out_{len(copies)}"
                copies[name, wanted], specs[copy] = copy, wanted
                copied = relayout_body(specs[name], wanted)
                calls.append(Call(label="relayout", body=copied, inputs=(name,), outputs=(copy,)))
            inputs.append(copies.get((name, wanted), name))
        calls.append(replace(call, body=body, inputs=tuple(inputs)))
    return verify(replace(program, calls=tuple(calls), specs=specs))


def _loose_key(body: Body) -> Key:
    """The body's key without input strides. Output layouts stay: others read them.

    So do those of weights that hold other tensors: there is no copy of such in another layout.
    """
    loose = tuple(spec if spec.wrapped else replace(spec, stride=()) for spec in body.inputs)
    return Key((loose, body.key[1:], body.outputs))
