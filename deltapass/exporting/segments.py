"""Stage 5 for engines: everything between two cuts becomes one segment.

An engine holds its weights. So that each weight lies in one engine only, the stack is cut where
some span begins or ends, or has a seam, before the first block where a span is kept by its feature,
and nowhere else; a variant is then a list of segments. For
the spans 7:28 and 0:21 of 28 blocks, before:           after:

    h0, c = prologue(x, t)                   h0, c = prologue(x, t)
    h1 = block_0(h0, c)                      h7 = blocks_0_7(h0, c)
    h2 = block_1(h1, c)                      h21 = blocks_7_21(h7, c)
    ...                                      h28 = blocks_21_28(h21, c)
    out = epilogue(h28, c)                   out = epilogue(h28, c)

The result is a program like any other: the same rewrite makes its variants.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

import torch
from torch.utils._pytree import tree_iter

from deltapass.compiler.outline import Outline
from deltapass.compiler.rewrite import inline
from deltapass.graph.program import Body, Call, Program, TensorSpec
from deltapass.graph.sizes import Dimension, Dimensions, Size, multiple_of, symbols_of
from deltapass.graph.verify import verify
from deltapass.schedule.rules import Span


def segmented(
    outline: Outline, spans: Sequence[Span], shapes: Mapping[str, Dimensions] | None = None
) -> Program:
    """The full model as a program of segments.

    Args:
        outline: The outlined model.
        spans: The spans that variants skip; none gives one segment.
        shapes: Value name -> dimensions, where they may vary.

    Returns:
        The program. Values between segments are dense, whatever layout they had in the graph:
        engines know no strides.
    """
    program, at = outline.program, outline.block_calls
    inner = {position for span in spans for position in outline.calls_of(span)}
    if any(span.is_feature for span in spans):
        inner.add(at[0][0])  # blocks before a feature are not run, what lies before them is
    seams = (s for span in spans for s in outline.stack.seams_within(span.start, span.stop))
    inner |= {position for seam in seams for position in (at[seam - 1][-1] + 1, at[seam][0])}
    cuts = sorted({0, *inner, len(program.calls)})
    specs = {name: dense(spec) for name, spec in program.specs.items()}
    merged = (
        _merged(program, _name(outline, first, stop), range(first, stop))
        for first, stop in itertools.pairwise(cuts)
    )
    sized = tuple(_with_sizes(program, call, shapes or {}) for call in merged)
    changed = replace(program, calls=sized, specs=specs)
    verify(changed)
    return changed


def as_one_segment(program: Program) -> Call:
    """A whole variant as one segment, of which variants share nothing."""
    inputs = tuple(name for name in program.inputs if name in program.specs)
    body = _dense_body(inline(replace(program, inputs=inputs)))
    outputs = (*program.value_results, *program.deltas)
    return Call(label=program.name, body=body, inputs=inputs, outputs=outputs)


def dense(spec: TensorSpec) -> TensorSpec:
    """The same tensor in row-major order without gaps."""
    strides = itertools.accumulate(reversed(spec.shape[1:]), lambda one, two: one * two, initial=1)
    stride = tuple(reversed(list(strides))) if spec.shape else ()
    return replace(spec, stride=stride)


def _name(outline: Outline, first: int, stop: int) -> str:
    """`prologue`, `blocks_7_21`, `epilogue`, or what of these lies together.

    The way up of nested blocks is `up_21_7`.
    """
    begins = [own[0] for own in outline.block_calls]
    last = max(own[-1] for own in outline.block_calls)
    blocks = [block for block, at in enumerate(begins) if first <= at < stop]
    up = [b for b, own in enumerate(outline.block_calls) if first <= own[-1] < stop]
    words = []
    if first < begins[0]:
        words.append("prologue")
    if blocks:
        words.append(f"blocks_{blocks[0]}_{blocks[-1] + 1}")
    elif up:
        words.append(f"up_{up[-1] + 1}_{up[0]}")
    elif begins[0] < first <= last:
        words.append(f"between_{sum(at < first for at in begins)}")
    if stop > last + 1:
        words.append("epilogue")
    return "_".join(words)


def _merged(program: Program, name: str, positions: range) -> Call:
    """The calls at these positions as one call of one body."""
    calls = program.calls[positions.start : positions.stop]
    made = {output for call in calls for output in call.outputs}
    outside = [c for at, c in enumerate(program.calls) if at not in positions]
    read = {*program.value_results, *(given for call in outside for given in call.inputs)}
    inputs = dict.fromkeys(given for call in calls for given in call.inputs if given not in made)
    outputs = dict.fromkeys(o for call in calls for o in call.outputs if o in read)
    part = replace(
        program, name=name, inputs=tuple(inputs), calls=tuple(calls), results=tuple(outputs)
    )
    return Call(
        label=name, body=_dense_body(inline(part)), inputs=tuple(inputs), outputs=tuple(outputs)
    )


def _dense_body(body: Body) -> Body:
    """The body with its results copied into row-major order where they are not in it."""
    graph = body.module.graph
    output = next(iter(reversed(graph.nodes)))
    with graph.inserting_before(output):
        laid_out = tuple(
            value
            if spec == dense(spec)
            else graph.call_function(torch.ops.aten.contiguous.default, (value,))
            for value, spec in zip(output.args[0], body.outputs, strict=True)
        )
    output.args = (laid_out,)
    body.module.recompile()
    return replace(
        body,
        inputs=tuple(map(dense, body.inputs)),
        outputs=tuple(map(dense, body.outputs)),
    )


def formulas(body: Body) -> frozenset[str]:
    """Formulas of the varying sizes that a body's operations name."""
    leaves = (
        leaf for node in body.module.graph.nodes for leaf in tree_iter((node.args, node.kwargs))
    )
    return frozenset(leaf.formula for leaf in leaves if isinstance(leaf, Size))


def _with_sizes(program: Program, call: Call, shapes: Mapping[str, Dimensions]) -> Call:
    """Hand a segment the model's own inputs too, where it names a size that only they tell.

    Sizes of its outputs count: who runs it makes room for them beforehand.
    """
    known = {size for name in call.inputs for size in shapes.get(name, ())}
    given = (size for name in call.outputs for size in shapes.get(name, ()))
    named = {*formulas(call.body), *(size for size in given if isinstance(size, str))}
    wanted = (symbols_of(formula) for formula in named if formula not in known)
    missing = {symbol for symbols in wanted for symbol in symbols} - _told(known)
    for name in program.inputs:
        if missing & _told(shapes.get(name, ())):
            call = _with_input(call, name, dense(program.specs[name]))
            missing -= _told(shapes[name])
    return call


def _told(dimensions: Iterable[Dimension]) -> set[str]:
    """Named dimensions that can be told from these: each that is one of them, or a part of one."""
    formulas = [size for size in dimensions if isinstance(size, str)]
    parts = (multiple_of(formula) for formula in formulas)
    return {*formulas, *(part[1] for part in parts if part)}


def _with_input(call: Call, name: str, spec: TensorSpec) -> Call:
    graph = call.body.module.graph
    last = [node for node in graph.nodes if node.op == "placeholder"][-1]
    with graph.inserting_after(last):
        graph.placeholder(name)
    call.body.module.recompile()
    body = replace(call.body, inputs=(*call.body.inputs, spec))
    return replace(call, body=body, inputs=(*call.inputs, name))
