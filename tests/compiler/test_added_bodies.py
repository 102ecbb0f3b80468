"""compiler/added_bodies.py: what is kept and predicted of streams of half precision."""

from __future__ import annotations

import functools
from dataclasses import replace
from typing import Any

import pytest
import torch
from driving import compiled, follow, oracle
from models import B, D, T, randomise
from models.adaln import ClippedDenoiser
from models.streams import Call
from torch import Tensor

import deltapass
from deltapass.compiler.added_bodies import (
    delta_body,
    delta_dtype,
    feature_body,
    predict_body,
)
from deltapass.graph.program import TensorSpec
from deltapass.schedule.predictors import PREDICTORS
from deltapass.schedule.presets import delta_dit

MOST = torch.finfo(torch.float16).max
SPEC = TensorSpec(shape=(2, 3), stride=(3, 1), dtype=torch.float16, device=torch.device("cpu"))


def half(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float16).expand(2, 3).contiguous()


def bodies(dtype: torch.dtype, taken: int = 0, into: torch.dtype | None = None) -> Any:
    """The functions that make and add the delta of a stream of one type, or that changes it."""
    live_in, live_out = replace(SPEC, dtype=dtype), replace(SPEC, dtype=into or dtype)
    delta = delta_body(live_out, live_in)
    predict = predict_body(delta.outputs[0], live_in, live_out, taken)
    assert predict.outputs == (live_out,)
    return lambda *given: delta.module(*given)[0], lambda *given: predict.module(*given)[0]


def test_halves_have_deltas_of_another_type() -> None:
    halves, others = (torch.float16, torch.bfloat16), (torch.float32, torch.float64)
    assert {delta_dtype(half) for half in halves} == {torch.float32}
    assert tuple(map(delta_dtype, others)) == others


def test_difference_beyond_the_range_is_kept() -> None:
    delta = delta_body(SPEC, SPEC)
    (given,) = delta.module(half(MOST, -MOST, 1.0), half(-MOST, MOST, 2.0))
    assert torch.equal(given[0], torch.tensor([2 * MOST, -2 * MOST, -1.0]))
    assert delta.outputs == (TensorSpec.of(given),)


@pytest.mark.parametrize("taken", [0, 2])
def test_prediction_stays_within_the_range(taken: int) -> None:
    delta = delta_body(SPEC, SPEC).outputs[0]
    body = predict_body(delta, SPEC, SPEC, taken)
    newest = torch.tensor([2 * MOST, -2 * MOST, 1.0]).expand(2, 3).contiguous()
    before = (-newest, torch.tensor([1.5, -0.5])) if taken else ()
    live_in = half(0.0, 100.0, 1.0)
    (given,) = body.module(newest, *before, live_in)
    assert torch.equal(given[0], half(MOST, -MOST, 3.0 if taken else 2.0)[0])
    assert body.outputs == (SPEC,)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("taken", [0, 1, 2, 4])
def test_a_prediction_is_rounded_once(dtype: torch.dtype, taken: int) -> None:
    torch.manual_seed(taken)
    live_in, *outs = (torch.randn(2, 3).to(dtype) for _ in range(max(1, taken) + 1))
    delta, predict = bodies(dtype, taken)
    deltas = [delta(out, live_in) for out in outs]
    weights = torch.randn(taken) if taken else torch.ones(1)
    wide = live_in.float() + sum(
        weights[i] * (out.float() - live_in.float()) for i, out in enumerate(outs)
    )
    given = predict(*deltas, *([weights] if taken else []), live_in)
    assert torch.equal(given, wide.to(dtype))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_delta_of_the_same_call_gives_the_live_out_bit_for_bit(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    live_in, live_out = (1000 * torch.randn(2, 3)).to(dtype), torch.randn(2, 3).to(dtype)
    delta, predict = bodies(dtype)
    assert not torch.equal(live_in + (live_out - live_in), live_out)  # in the type itself
    assert torch.equal(predict(delta(live_out, live_in), live_in), live_out)


def test_sum_that_leaves_the_range_half_way_comes_back() -> None:
    # live_in + delta is in range; either of them need not be, nor their sum in float16.
    delta, predict = bodies(torch.float16)
    given = predict(delta(half(-MOST, 0.0, 5.0), half(MOST, 0.0, 3.0)), half(MOST, 1.0, 3.0))
    assert torch.equal(given, half(-MOST, 1.0, 5.0))


@pytest.mark.parametrize(
    ("entering", "leaving"),
    [
        (torch.bfloat16, torch.float32),
        (torch.float32, torch.bfloat16),
        (torch.float16, torch.bfloat16),
        (torch.float32, torch.float64),
    ],
)
@pytest.mark.parametrize("taken", [0, 2])
def test_a_stream_may_change_its_type(
    entering: torch.dtype, leaving: torch.dtype, taken: int
) -> None:
    torch.manual_seed(0)
    live_in, live_out = torch.randn(2, 3).to(entering), torch.randn(2, 3).to(leaving)
    delta, predict = bodies(entering, taken, leaving)
    made = delta(live_out, live_in)
    given = predict(
        *[made] * max(1, taken), *([torch.tensor([2.0, -1.0])] if taken else []), live_in
    )
    assert given.dtype == leaving
    torch.testing.assert_close(given, live_out, rtol=torch.finfo(leaving).eps, atol=1e-7)


# ---- what is no number -------------------------------------------------------------------------

INF, NAN = float("inf"), float("nan")


@pytest.mark.parametrize("taken", [0, 1, 2, 4])
@pytest.mark.parametrize(
    ("live_in", "live_out", "now", "expected"),
    [
        (INF, INF, INF, INF),
        (0.0, INF, 0.0, INF),  # as the plain model's was
        (0.0, -INF, 5.0, -INF),
        (0.0, 1.0, INF, INF),  # as the plain model's sum would be
        (0.0, NAN, 0.0, NAN),
        (NAN, NAN, 0.0, NAN),
        (0.0, 1.0, NAN, NAN),
        (INF, MOST, MOST, MOST),  # clipped where it enters: no reason for anything but a number
        (-INF, 7.0, -MOST, 7.0),
    ],
)
def test_what_is_no_number_in_the_model_is_none_in_ours_and_nothing_else(
    live_in: float, live_out: float, now: float, expected: float, taken: int
) -> None:
    delta, predict = bodies(torch.float16, taken)
    newest = delta(half(0.0, live_out, 1.0), half(0.0, live_in, 2.0))
    older = [delta(half(0.0, -live_out, 1.0), half(0.0, live_in, 2.0))] * (taken - 1)
    weights = [torch.tensor([1.0, *[0.0] * (taken - 1)])] if taken else []
    given = predict(newest, *older, *weights, half(1.0, now, 3.0))
    assert torch.equal(
        given.nan_to_num(42.0, INF, -INF), half(1.0, expected, 2.0).nan_to_num(42.0, INF, -INF)
    )


@pytest.mark.parametrize("taken", [0, 1, 2])
@pytest.mark.parametrize("value", [INF, -INF, NAN])
def test_features_that_are_no_number_stay_so(value: float, taken: int) -> None:
    body = feature_body(SPEC)
    (kept,) = body.module(half(value, 1.0, 2.0))
    predict = predict_body(body.outputs[0], None, SPEC, taken)
    weights = [torch.tensor([1.0, *[0.0] * (taken - 1)])] if taken else []
    (given,) = predict.module(*[kept] * max(1, taken), *weights)
    assert torch.equal(
        given.nan_to_num(42.0, INF, -INF), half(value, 1.0, 2.0).nan_to_num(42.0, INF, -INF)
    )


# ---- a whole model -----------------------------------------------------------------------------


STEPS = 8
OPTIONS = {"cached_blocks": 4, "boundary": 0.5, "steps": STEPS}


@functools.cache
def clipped() -> ClippedDenoiser:
    return randomise(ClippedDenoiser()).half()


def calls() -> list[Call]:
    return [clipped().inputs(1000.0 * (1 - step / STEPS), step) for step in range(STEPS)]


def test_the_model_swings_further_than_float16_reaches() -> None:
    streams: list[Tensor] = []
    handles = [
        block.register_forward_hook(lambda _, given, out: streams.extend((given[0], out)))
        for block in clipped().blocks
    ]
    outputs = follow(clipped(), calls())
    for handle in handles:
        handle.remove()
    live_in, live_out = streams[4], streams[11]  # of the deep span
    assert torch.isinf(live_out - live_in).any()
    assert all(torch.isfinite(value).all() for value in (*streams, *outputs))


@pytest.mark.parametrize("predictor", [*PREDICTORS])
def test_cached_steps_equal_the_oracle_and_are_finite(predictor: str) -> None:
    table = delta_dit(cached_blocks=4, boundary=0.5).table(STEPS, 6)
    expected = oracle(clipped(), table, calls(), predictor)
    model = compiled(clipped(), predictor=predictor, **OPTIONS)
    with deltapass.session(steps=STEPS) as session:
        ours = follow(model, calls(), session)
    assert session.report().cached == STEPS // 2
    for one, other in zip(ours, expected, strict=True):
        assert torch.isfinite(one).all()
        assert torch.equal(one, other)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("predictor", ["reuse", "linear", "chebyshev"])
def test_bytes_are_those_of_float32(predictor: str, dtype: torch.dtype) -> None:
    toy = randomise(ClippedDenoiser(swing=1.0)).to(dtype)
    options = {"predictor": predictor, **OPTIONS}
    steps = [((sample.to(dtype), t), kwargs) for (sample, t), kwargs in calls()]
    args, kwargs = steps[0]
    report = deltapass.explain(toy, *args, options=options, **kwargs)
    delta = B * T * D * torch.float32.itemsize
    name = str(dtype).removeprefix("torch.")
    assert f"{name}[{B}, {T}, {D}]; {delta} bytes a delta" in report.spans[0]
    model, held = compiled(toy, **options), []
    with torch.no_grad(), deltapass.session(steps=STEPS) as session:
        for step, (args, _) in enumerate(steps):
            session.step(step)
            model(*args)
            held.append(session.nbytes)
    assert max(held) == report.buffer_bytes
