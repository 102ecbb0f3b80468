"""Stage 5: program + span plans -> static variants: refresh and cached.

The whole pass is here: replace a span's live-outs by live-in + delta, and drop the calls nobody
needs any more. It reads names and layouts only; it knows nothing of the model.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import fx

from deltapass.compiler.outline import verify
from deltapass.compiler.plan import SpanPlan, Stream
from deltapass.graph.program import Body, Call, Program, TensorSpec

WEIGHT_OF_TREND = "trend"
BEFORE = "_before"  # after the name of a delta: that of the refresh before the last


def refresh_program(program: Program, spans: Sequence[SpanPlan]) -> Program:
    """The full model that also gives the deltas of `spans` (Eq. 3).

    Before:                               After:
        h28 = block_1(h27, c)                 h28 = block_1(h27, c)
        out = epilogue(h28, c)                delta_7_28_0 = delta(h28, h7)
        return out                            out = epilogue(h28, c)
                                              return out, delta_7_28_0

    Returns:
        The variant; `deltas` holds one name for every stream of every span, in order.
    """
    calls, specs = list(program.calls), dict(program.specs)
    for plan in spans:
        for index, stream in enumerate(plan.streams):
            name = delta_name(plan, index)
            body = _delta_body(specs[stream.live_in], stream)
            call = Call(
                label="delta", body=body, inputs=(stream.live_out, stream.live_in), outputs=(name,)
            )
            # As early as possible: the live-in need not stay alive until the end.
            calls.insert(_made_at(calls, stream.live_out) + 1, call)
            specs[name] = body.outputs[0]
    names = tuple(delta_name(plan, i) for plan in spans for i in range(len(plan.streams)))
    title = "_".join(["refresh", *(f"{p.span.start}_{p.span.stop}" for p in spans)])
    changed = replace(program, name=title, calls=tuple(calls), deltas=names, specs=specs)
    verify(changed)
    return changed


def cached_program(program: Program, plan: SpanPlan, order: int) -> Program:
    """The model without the span's blocks: live-in plus predicted delta instead (Eq. 3).

    Before:                               After (order 0):
        h7 = block_1(h6, c)                   h7 = block_1(h6, c)
        h8 = block_1(h7, c)                   h28 = predict_0(delta_7_28_0, h7)
        ...                                   out = epilogue(h28, c)
        h28 = block_1(h27, c)                 return out
        out = epilogue(h28, c)
        return out

    Order 1 takes the last two deltas and a scalar w: delta = d1 + w * (d1 - d0).

    Returns:
        The variant; its inputs end with the delta buffers (for order 1: all d1, all d0, w).
    """
    specs = dict(program.specs)
    inserted, buffers = [], _buffer_names(plan, order)
    for index, stream in enumerate(plan.streams):
        taken = [names[index] for names in buffers]
        delta = delta_spec(program, stream)
        specs.update(dict.fromkeys(taken, delta))
        body = _predict_body(delta, specs[stream.live_in], stream, order)
        trend = (WEIGHT_OF_TREND,) if order else ()
        inserted.append(
            Call(
                label=f"predict_{order}",
                body=body,
                inputs=(*taken, *trend, stream.live_in),
                outputs=(stream.live_out,),
            )
        )
    inputs = [*program.inputs, *(name for names in buffers for name in names)]
    if order:
        inputs.append(WEIGHT_OF_TREND)
        specs[WEIGHT_OF_TREND] = _scalar(plan.streams[0].spec)
    replaced = {stream.live_out for stream in plan.streams}
    calls = _with_predictions(program.calls, inserted, replaced)
    title = f"cached_{plan.span.start}_{plan.span.stop}"
    changed = replace(program, name=title, inputs=tuple(inputs), calls=calls, specs=specs)
    pruned = drop_dead_calls(changed)
    verify(pruned)
    return pruned


def delta_name(plan: SpanPlan, stream: int) -> str:
    """Name of the delta of one stream of a span."""
    return f"delta_{plan.span.start}_{plan.span.stop}_{stream}"


def delta_spec(program: Program, stream: Stream) -> TensorSpec:
    """Layout of the delta of one stream: that of the live-out, without gaps."""
    return _delta_body(program.specs[stream.live_in], stream).outputs[0]


def drop_dead_calls(program: Program) -> Program:
    """Leave out every call that no result needs."""
    needed = {*program.value_results, *program.deltas}
    kept = []
    for call in reversed(program.calls):
        if needed.intersection(call.outputs):
            kept.append(call)
            needed.update(call.inputs)
    return replace(program, calls=tuple(reversed(kept)))


def inline(program: Program) -> Body:
    """The whole program as one body: most fusion, slowest compile."""
    graph, root = fx.Graph(), torch.nn.Module()
    env = {name: graph.placeholder(name) for name in program.inputs}
    for call in program.calls:
        inner: dict[fx.Node, fx.Node] = {}
        arguments = iter(call.inputs)
        for node in call.body.module.graph.nodes:
            if node.op == "placeholder":
                inner[node] = env[next(arguments)]
            elif node.op == "output":
                given = (inner[value] for value in node.args[0])
                env.update(zip(call.outputs, given, strict=True))
            else:
                inner[node] = graph.node_copy(node, inner.__getitem__)
            if node.op == "get_attr":  # a sub-graph; all bodies come from one graph
                setattr(root, str(node.target), getattr(call.body.module, str(node.target)))
    names = (*program.value_results, *program.deltas)
    graph.output(tuple(env[name] for name in names))
    graph.lint()
    return Body(
        name=program.name,
        module=fx.GraphModule(root, graph),
        key=("whole", *((call.body.key, call.inputs, call.outputs) for call in program.calls)),
        inputs=tuple(program.specs[name] for name in program.inputs),
        outputs=tuple(program.specs[name] for name in names),
        macs=program.macs,
    )


def _made_at(calls: Sequence[Call], name: str) -> int:
    return next(at for at, call in enumerate(calls) if name in call.outputs)


def _with_predictions(
    calls: Sequence[Call], inserted: Sequence[Call], replaced: set[str]
) -> tuple[Call, ...]:
    """Put each prediction where the first of the values it replaces was made."""
    at = min(_made_at(calls, name) for name in replaced)
    before = [_without_outputs(call, replaced) for call in calls[:at]]
    after = [_without_outputs(call, replaced) for call in calls[at:]]
    return (*before, *inserted, *after)


def _without_outputs(call: Call, names: set[str]) -> Call:
    """The call with the outputs in `names` renamed, so that nobody reads them."""
    outputs = tuple(f"{name}_dropped" if name in names else name for name in call.outputs)
    return replace(call, outputs=outputs)


def _buffer_names(plan: SpanPlan, order: int) -> list[list[str]]:
    """For every age of delta (newest first), one buffer name a stream."""
    ages = ("", BEFORE)[: order + 1]
    count = len(plan.streams)
    return [[delta_name(plan, index) + age for index in range(count)] for age in ages]


def _scalar(spec: TensorSpec) -> TensorSpec:
    return TensorSpec(shape=(), stride=(), dtype=torch.float32, device=spec.device)


def _delta_body(live_in: TensorSpec, stream: Stream) -> Body:
    graph = fx.Graph()
    live_out, entered = graph.placeholder("live_out"), graph.placeholder("live_in")
    difference = graph.call_function(torch.sub, (live_out, entered))
    return _small_body("delta", graph, difference, (stream.spec, live_in))


def _predict_body(delta: TensorSpec, live_in: TensorSpec, stream: Stream, order: int) -> Body:
    """live_in + predicted delta, in the live-out's own layout.

    The delta comes first in the sum: it has the live-out's layout, which the next body expects,
    while the live-in may be laid out otherwise (a patch embedding is a transposed view).
    """
    graph = fx.Graph()
    predicted = graph.placeholder("delta")
    if order:
        before, trend = graph.placeholder("delta_before"), graph.placeholder("trend")
        change = graph.call_function(torch.sub, (predicted, before))
        predicted = graph.call_function(
            torch.add, (predicted, graph.call_function(torch.mul, (trend, change)))
        )
    entered = graph.placeholder("live_in")
    total = graph.call_function(torch.add, (predicted, entered))
    given = (delta, delta, _scalar(delta), live_in) if order else (delta, live_in)
    if _result_spec(graph, total, given).stride != stream.spec.stride:
        total = _laid_out(graph, total, stream.spec)
    return _small_body(f"predict_{order}", graph, total, given)


def _laid_out(graph: fx.Graph, value: fx.Node, spec: TensorSpec) -> fx.Node:
    """Copy into a tensor of the given strides, which may leave gaps (a slice of a larger one)."""
    place: dict[str, Any] = {"dtype": spec.dtype, "device": spec.device}
    empty = graph.call_function(torch.empty_strided, (spec.shape, spec.stride), place)
    return graph.call_method("copy_", (empty, value))


def _result_spec(graph: fx.Graph, result: fx.Node, given: Sequence[TensorSpec]) -> TensorSpec:
    """Layout that torch gives a result, found on tensors without data."""
    values: dict[fx.Node, torch.Tensor] = {}
    specs = iter(given)
    for node in graph.nodes:
        if node.op == "placeholder":
            spec = next(specs)
            values[node] = torch.empty_strided(
                spec.shape, spec.stride, dtype=spec.dtype, device="meta"
            )
        elif node.op == "call_function" and node.target is not torch.empty_strided:
            values[node] = node.target(*(values[value] for value in node.args))
    return replace(TensorSpec.of(values[result]), device=given[0].device)


def _small_body(
    name: str, graph: fx.Graph, result: fx.Node, inputs: tuple[TensorSpec, ...]
) -> Body:
    laid_out = result.op == "call_method"
    empty = result.args[0] if laid_out else None
    if isinstance(empty, fx.Node):
        layout: Any = empty.args
        shape, stride = layout
        output = replace(inputs[0], shape=shape, stride=stride)
    else:
        output = _result_spec(graph, result, inputs)
    graph.output((result,))
    return Body(
        name=name,
        module=fx.GraphModule(torch.nn.Module(), graph),
        key=(name, inputs, output),
        inputs=inputs,
        outputs=(output,),
    )
