"""Stage 5: program + span plans -> static variants: refresh and cached.

The whole pass is here: replace a span's live-outs by live-in + delta, or by what was kept of them,
and drop the calls nobody needs any more. It reads names and layouts only; it knows nothing of the
model.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Final

import torch
from torch import fx

from deltapass.compiler.added_bodies import (
    delta_body,
    feature_body,
    predict_body,
    weights_spec,
)
from deltapass.compiler.plan import SpanPlan
from deltapass.compiler.streams import Stream
from deltapass.graph.copying import copy_into
from deltapass.graph.dead_calls import drop_dead_calls, without_outputs
from deltapass.graph.keys import Key
from deltapass.graph.program import Body, Call, Program, TensorSpec
from deltapass.graph.verify import verify

BEFORE: Final = "_before_"  # after the name of a delta, with a number: of as many refreshes earlier


def refresh_program(program: Program, spans: Sequence[SpanPlan]) -> Program:
    """The full model that also gives the deltas of `spans` (Eq. 3).

    Before:                               After:
        h28 = block_1(h27, c)                 h28 = block_1(h27, c)
        out = epilogue(h28, c)                delta_7_28_0 = delta(h28, h7)
        return out                            out = epilogue(h28, c)
                                              return out, delta_7_28_0

    Of a span that is kept by its feature it gives a copy of the live-out:

                                              feature_7_28_0 = feature(h28)

    Of one whose cross-attention is kept, of the finer program (`Outline.program_for`), the same of
    every addend.

    Returns:
        The variant; `deltas` holds one name for every stream of every span, in order.
    """
    calls, specs = list(program.calls), dict(program.specs)
    names = []
    for plan in spans:
        for name, stream in zip(_delta_names(plan), plan.streams, strict=True):
            call = _kept(stream, name, specs)
            # As early as possible: the live-in need not stay alive until the end.
            calls.insert(_made_at(calls, stream.live_out) + 1, call)
            specs[name] = call.body.outputs[0]
            names.append(name)
    title = "_".join(["refresh", *(_title(plan) for plan in spans)])
    return verify(
        replace(program, name=title, calls=tuple(calls), deltas=tuple(names), specs=specs)
    )


def cached_program(program: Program, plan: SpanPlan, taken: int = 0) -> Program:
    """The model without the span's blocks: live-in plus predicted delta instead (Eq. 3).

    Before:                               After (taken 0):
        h7 = block_1(h6, c)                   h7 = block_1(h6, c)
        h8 = block_1(h7, c)                   h28 = predict_0(delta_7_28_0, h7)
        ...                                   out = epilogue(h28, c)
        h28 = block_1(h27, c)                 return out
        out = epilogue(h28, c)
        return out

    With `taken` 1 to 4 that many deltas of every stream are summed by weights that are inputs too.
    A feature is taken as it is (or so many are summed): h28 = predict_0(feature_7_28_0), and the
    blocks before the span, which served it alone, are not there either.

    Returns:
        The variant; its inputs end with the delta buffers, newest of all streams first, then one
        vector of weights a stream (none for taken 0).
    """
    specs = dict(program.specs)
    ages = range(max(1, taken))
    inputs = [buffer_name(plan, at, age) for age in ages for at in range(len(plan.streams))]
    weights = [weights_name(at) for at in range(len(plan.streams))] if taken else []
    predictions = []
    for at, stream in enumerate(plan.streams):
        delta = delta_spec(program, stream)
        buffers = [buffer_name(plan, at, age) for age in ages]
        specs.update(dict.fromkeys(buffers, delta))
        if taken:
            specs[weights[at]] = weights_spec(delta, taken)
        predictions.append(
            Call(
                label=f"predict_{taken}",
                body=predict_body(delta, specs.get(stream.live_in), stream.spec, taken),
                inputs=(*buffers, *weights[at : at + 1], *_live_in(stream)),
                outputs=(stream.live_out,),
            )
        )
    calls = _with_predictions(program.calls, predictions)
    changed = replace(
        program,
        name=f"cached_{_title(plan)}",
        inputs=(*program.inputs, *inputs, *weights),
        calls=calls,
        specs=specs,
    )
    return verify(drop_dead_calls(changed))


def delta_name(plan: SpanPlan, stream: int) -> str:
    """Name of the delta of one stream of a span, or of what else is kept of it."""
    return f"{_word(plan)}_{plan.span.start}_{plan.span.stop}_{stream}"


def buffer_name(plan: SpanPlan, stream: int, age: int) -> str:
    """Name of the delta of one stream that was made `age` refreshes before the newest."""
    name = delta_name(plan, stream)
    return f"{name}{BEFORE}{age}" if age else name


def weights_name(stream: int) -> str:
    """Name of the weights of the deltas of one stream."""
    return f"weights_{stream}"


def delta_spec(program: Program, stream: Stream) -> TensorSpec:
    """Layout of what is kept of one stream: that of the live-out, without gaps."""
    return _kept(stream, "", program.specs).body.outputs[0]


def inline(program: Program) -> Body:
    """The whole program as one body: most fusion, slowest compile."""
    graph, root = fx.Graph(), torch.nn.Module()
    values = {name: graph.placeholder(name) for name in program.inputs}
    for call in program.calls:
        module = call.body.module
        made = copy_into(graph, module.graph, (values[name] for name in call.inputs))
        values.update(zip(call.outputs, made, strict=True))
        for node in module.graph.find_nodes(op="get_attr"):
            # A sub-graph; all bodies come from one graph.
            setattr(root, node.target, getattr(module, node.target))
    names = (*program.value_results, *program.deltas)
    graph.output(tuple(values[name] for name in names))
    graph.lint()
    return Body(
        name=program.name,
        module=fx.GraphModule(root, graph),
        key=Key(("whole", *((call.body.key, call.inputs, call.outputs) for call in program.calls))),
        inputs=tuple(program.specs[name] for name in program.inputs),
        outputs=tuple(program.specs[name] for name in names),
        macs=program.macs,
    )


def _kept(stream: Stream, name: str, specs: Mapping[str, TensorSpec]) -> Call:
    """The call that gives the delta, or the feature, of one stream."""
    if stream.live_in:
        body, label = delta_body(stream.spec, specs[stream.live_in]), "delta"
    else:
        body, label = feature_body(stream.spec), "feature"
    inputs = (stream.live_out, *_live_in(stream))
    return Call(label=label, body=body, inputs=inputs, outputs=(name,))


def _live_in(stream: Stream) -> tuple[str, ...]:
    return (stream.live_in,) if stream.live_in else ()


def _title(plan: SpanPlan) -> str:
    kept = "" if plan.span.keeps == "delta" else f"_{_word(plan)}"
    return f"{plan.span.start}_{plan.span.stop}{kept}"


def _word(plan: SpanPlan) -> str:
    return plan.span.keeps.replace("-", "_")


def _delta_names(plan: SpanPlan) -> list[str]:
    return [delta_name(plan, index) for index in range(len(plan.streams))]


def _made_at(calls: Sequence[Call], name: str) -> int:
    return next(at for at, call in enumerate(calls) if name in call.outputs)


def _with_predictions(calls: Sequence[Call], predictions: Sequence[Call]) -> tuple[Call, ...]:
    """Each prediction where the value that it replaces was made."""
    made = {name: call for call in predictions for name in call.outputs}
    placed: list[Call] = []
    for call in calls:
        placed.extend(made[name] for name in call.outputs if name in made)
        placed.append(without_outputs(call, made))
    return tuple(placed)
