"""The small bodies that the compiler adds to those of the model: what is kept, and predictions.

Deltas of float16 streams are float32. Models clip such streams at +-65504; the difference of two
values within that range may lie outside of it, and infinity minus infinity is no number. bfloat16
has the range of float32, so its deltas stay what the streams are. Features have the same types:
a fit to them has coefficients beyond that range.

What is kept and what a cached step makes of a feature are copies. A model's results may be views of
a live-out, and whoever samples may write into these.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import replace
from typing import Any, Final

import torch
from torch import fx

from deltapass.graph.copying import laid_out
from deltapass.graph.keys import Key
from deltapass.graph.program import Body, TensorSpec

HALF_MAX: Final = torch.finfo(torch.float16).max


def delta_dtype(stream: torch.dtype) -> torch.dtype:
    """The type in which the deltas of a stream are held, and added to it."""
    return torch.float32 if stream == torch.float16 else stream


def delta_body(live_out: TensorSpec, live_in: TensorSpec) -> Body:
    """What a span adds to a stream (Eq. 3)."""
    function = _wide_delta if live_out.dtype == torch.float16 else torch.sub
    return _body("delta", function, live_out=live_out, live_in=live_in)


def feature_body(live_out: TensorSpec) -> Body:
    """What a span hands on: a copy of its live-out, without gaps."""
    function = _finite if live_out.dtype == torch.float16 else torch.clone
    return _body("feature", function, live_out=live_out)


def predict_body(
    kept: TensorSpec, live_in: TensorSpec | None, live_out: TensorSpec, taken: int
) -> Body:
    """live_in + predicted delta, in the live-out's own layout and type; without one, a feature.

    With `taken` 0 what is kept is read as it is; else that many are summed by their weights. The
    sum begins with the delta: it has the live-out's layout, which the next body expects, while the
    live-in may be laid out otherwise (a patch embedding is a transposed view).
    """
    own = {} if live_in is None else {"live_in": live_in}
    name = "delta" if own else "feature"
    if taken:
        given = {f"{name}_{age}": kept for age in range(taken)}
        given["weights"] = weights_spec(kept, taken)
        function: Callable[..., Any] = _weighted(live_out.dtype, onto=bool(own))
    else:
        given = {name: kept}
        function = torch.add if own else torch.clone
        if live_out.dtype == torch.float16:
            function = _narrow(torch.add) if own else _half
    body = _body(f"predict_{taken}", function, **given, **own)
    return body if body.outputs[0].stride == live_out.stride else _in_layout(body, live_out)


def relayout_body(given: TensorSpec, wanted: TensorSpec) -> Body:
    """A copy of a tensor in another layout."""
    return _in_layout(_body("relayout", lambda value: value, value=given), wanted)


def weights_spec(delta: TensorSpec, taken: int) -> TensorSpec:
    """The weights of the deltas of one stream, newest first."""
    return TensorSpec(shape=(taken,), stride=(1,), dtype=torch.float32, device=delta.device)


def _weighted(stream: torch.dtype, *, onto: bool) -> Callable[..., Any]:
    """Sum of weight times what is kept, at least in float32; rounded once, at the end.

    With `onto` the live-in is added too.
    """
    half = stream in (torch.float16, torch.bfloat16)
    wide = torch.float32 if half else stream

    def predicted(*values: Any) -> Any:
        *kept, weights = values[:-1] if onto else values
        terms = [torch.mul(each.to(wide), weights[age].to(wide)) for age, each in enumerate(kept)]
        total = functools.reduce(torch.add, terms)
        if onto:
            total = torch.add(total, values[-1].to(wide))
        if stream == torch.float16:
            total = torch.clamp(total, -HALF_MAX, HALF_MAX)
        return total.to(stream) if half else total

    return predicted


def _finite(value: Any) -> Any:
    """A value as float32, infinities as the largest numbers of float16."""
    return torch.clamp(value.to(torch.float32), -HALF_MAX, HALF_MAX)


def _half(feature: Any) -> Any:
    return feature.to(torch.float16)


def _wide_delta(live_out: Any, live_in: Any) -> Any:
    return torch.sub(_finite(live_out), _finite(live_in))


def _narrow(predict: Callable[..., Any]) -> Callable[..., Any]:
    """A prediction that is made in float32 and ends in float16, within its range."""

    def predicted(*values: Any) -> Any:
        *deltas, live_in = values
        return _finite(predict(*deltas, live_in.to(torch.float32))).to(torch.float16)

    return predicted


def _body(name: str, function: Callable[..., Any], **inputs: TensorSpec) -> Body:
    """A function of tensors as a body; its output is laid out as torch chooses."""
    graph = fx.Graph()
    tracer = fx.proxy.GraphAppendingTracer(graph)
    result = function(*(fx.Proxy(graph.placeholder(given), tracer) for given in inputs))
    graph.output((result.node,))
    specs = tuple(inputs.values())
    made = TensorSpec.of(function(*(spec.empty("meta") for spec in specs)))  # without data
    made = replace(made, device=specs[0].device)
    return Body(
        name=name,
        module=fx.GraphModule(torch.nn.Module(), graph),
        key=Key((name, specs, made)),
        inputs=specs,
        outputs=(made,),
    )


def _in_layout(body: Body, spec: TensorSpec) -> Body:
    """The body with its result copied into another layout."""
    graph = body.module.graph
    output = graph.output_node()
    (result,) = output.all_input_nodes
    with graph.inserting_before(output):
        output.args = ((laid_out(graph, result, spec),),)
    body.module.recompile()
    return replace(body, key=Key((body.name, body.inputs, spec)), outputs=(spec,))
