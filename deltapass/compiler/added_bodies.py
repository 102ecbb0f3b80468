"""The small bodies that the compiler adds to those of the model: what is kept, and predictions.

Streams of half precision are subtracted, weighed and added in float32, and rounded once, at the
end; what is kept of them is float32 too. Models clip streams of float16 at +-65504: two values
within that range may differ by more than it holds, and infinity minus infinity is no number. What
is predicted ends within the range likewise, where the model's own value was finite. Infinities and
NaN of the model's own stay: nothing of a model that overflows is hidden.

What is kept and what a cached step makes of a feature are copies. A model's results may be views of
a live-out, and whoever samples may write into these.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, Final

import torch
from torch import fx

from deltapass.graph.copying import laid_out
from deltapass.graph.keys import Key
from deltapass.graph.program import Body, TensorSpec

HALF: Final = (torch.float16, torch.bfloat16)
HALF_MAX: Final = torch.finfo(torch.float16).max


def delta_dtype(live_out: torch.dtype) -> torch.dtype:
    """The type in which what is kept of a stream is held."""
    return torch.float32 if live_out in HALF else live_out


def delta_body(live_out: TensorSpec, live_in: TensorSpec) -> Body:
    """What a span adds to a stream (Eq. 3)."""
    wide, kept = _wide(live_out, live_in), delta_dtype(live_out.dtype)

    def delta(left: Any, entered: Any) -> Any:
        if live_out.dtype == live_in.dtype == wide:
            return torch.sub(left, entered)
        entered = entered.to(wide)
        if live_in.dtype == torch.float16:  # infinite: some models clip what enters a block
            entered = _within(entered, HALF_MAX)
        return _rounded(torch.sub(left.to(wide), entered), kept)

    return _body("delta", delta, live_out=live_out, live_in=live_in)


def feature_body(live_out: TensorSpec) -> Body:
    """What a span hands on: a copy of its live-out, without gaps."""
    kept = delta_dtype(live_out.dtype)
    same = kept == live_out.dtype
    function: Callable[..., Any] = torch.clone if same else lambda value: value.to(kept)
    return _body("feature", function, live_out=live_out)


def predict_body(
    kept: TensorSpec, live_in: TensorSpec | None, live_out: TensorSpec, taken: int
) -> Body:
    """live_in + predicted delta, in the live-out's own layout and type; without one, a feature.

    With `taken` 0 what is kept is read as it is; else that many are summed by their weights. The
    sum begins with the delta: it has the live-out's layout, which the next body expects, while the
    live-in may be laid out otherwise (a patch embedding is a transposed view).
    """
    name = "feature" if live_in is None else "delta"
    given = {f"{name}_{age}": kept for age in range(taken)} if taken else {name: kept}
    if taken:
        given["weights"] = weights_spec(kept, taken)
    if live_in is not None:
        given["live_in"] = live_in
    function = _prediction(kept, live_in, live_out, taken)
    body = _body(f"predict_{taken}", function, **given)
    return body if body.outputs[0].stride == live_out.stride else _in_layout(body, live_out)


def relayout_body(given: TensorSpec, wanted: TensorSpec) -> Body:
    """A copy of a tensor in another layout."""
    return _in_layout(_body("relayout", lambda value: value, value=given), wanted)


def weights_spec(delta: TensorSpec, taken: int) -> TensorSpec:
    """The weights of the deltas of one stream, newest first."""
    return TensorSpec(shape=(taken,), stride=(1,), dtype=torch.float32, device=delta.device)


def _prediction(
    kept: TensorSpec, live_in: TensorSpec | None, live_out: TensorSpec, taken: int
) -> Callable[..., Any]:
    """The function of `predict_body`, of the same arguments."""
    entering = () if live_in is None else (live_in,)
    wide = _wide(kept, live_out, *entering)
    one_type = {spec.dtype for spec in (kept, live_out, *entering)} == {wide}
    if not taken and (one_type or (live_in is None and kept.dtype == live_out.dtype)):
        return torch.clone if live_in is None else torch.add

    def predicted(*values: Any) -> Any:
        *held, entered = values if entering else (*values, None)
        total = _weighted(held, wide, live_out.dtype) if taken else held[0].to(wide)
        total = total if entered is None else torch.add(total, entered.to(wide))
        return total if wide == live_out.dtype else _rounded(total, live_out.dtype)

    return predicted


def _wide(*specs: TensorSpec) -> torch.dtype:
    """The type in which streams are added: the widest of theirs, and float32 for any half."""
    types = (torch.float32 if spec.dtype in HALF else spec.dtype for spec in specs)
    return functools.reduce(torch.promote_types, types)


def _weighted(values: Sequence[Any], wide: torch.dtype, stream: torch.dtype) -> Any:
    """Sum of weight times what is kept, newest first; where the newest is infinite, that."""
    *kept, weights = values
    clipped, terms = stream == torch.float16, list[Any]()
    for age, each in enumerate(kept):
        term = each.to(wide)
        term = _within(term, 2 * HALF_MAX) if clipped else term
        terms.append(torch.mul(term, weights[age].to(wide)))
    total = functools.reduce(torch.add, terms)
    if not clipped:
        return total
    newest = kept[0].to(wide)
    return torch.where(torch.isinf(newest), newest, total)


def _rounded(total: Any, stream: torch.dtype) -> Any:
    """A sum in the type of its stream: of float16 within its range, if it is finite."""
    if stream == torch.float16:
        total = torch.where(torch.isinf(total), total, _within(total, HALF_MAX))
    return total.to(stream)


def _within(value: Any, most: float) -> Any:
    return torch.clamp(value, -most, most)


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
