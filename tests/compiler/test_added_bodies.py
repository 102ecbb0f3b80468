"""compiler/added_bodies.py: deltas of float16 streams, which lie outside the range of float16."""

from __future__ import annotations

import functools

import pytest
import torch
from driving import compiled, follow, oracle
from models import B, D, T, randomise
from models.adaln import ClippedDenoiser
from models.streams import Call
from torch import Tensor

import deltapass
from deltapass.compiler.added_bodies import delta_body, delta_dtype, predict_body
from deltapass.graph.program import TensorSpec
from deltapass.schedule.predictors import PREDICTORS
from deltapass.schedule.presets import delta_dit

MOST = torch.finfo(torch.float16).max
SPEC = TensorSpec(shape=(2, 3), stride=(3, 1), dtype=torch.float16, device=torch.device("cpu"))


def half(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float16).expand(2, 3).contiguous()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_only_float16_has_deltas_of_another_type(dtype: torch.dtype) -> None:
    assert (delta_dtype(torch.float16), delta_dtype(dtype)) == (torch.float32, dtype)


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


def test_a_weighted_sum_is_rounded_once() -> None:
    # 1 + 2^-8 in bfloat16 is 1; summed in float32 and rounded at the end, the parts count.
    spec = TensorSpec(shape=(1,), stride=(1,), dtype=torch.bfloat16, device=torch.device("cpu"))
    body = predict_body(spec, spec, spec, 4)
    small = torch.tensor([2.0**-8]).bfloat16()
    (given,) = body.module(small, small, small, small, torch.ones(4), torch.ones(1).bfloat16())
    assert given.dtype == torch.bfloat16
    assert given.item() == 1 + 4 * 2.0**-8


def test_sum_that_leaves_the_range_half_way_comes_back() -> None:
    # live_in + delta is in range; either of them need not be, nor their sum in float16.
    (delta,) = delta_body(SPEC, SPEC).module(half(-MOST, 0.0, 5.0), half(MOST, 0.0, 3.0))
    body = predict_body(TensorSpec.of(delta), SPEC, SPEC, 0)
    (given,) = body.module(delta, half(MOST, 1.0, 3.0))
    assert torch.equal(given[0], half(-MOST, 1.0, 5.0)[0])


def test_infinities_at_both_ends_are_no_reason_for_nan() -> None:
    # A model may clip what enters its blocks, not what leaves them.
    ends = half(float("inf"), float("-inf"), 0.0)
    (delta,) = delta_body(SPEC, SPEC).module(ends, ends)
    (given,) = predict_body(TensorSpec.of(delta), SPEC, SPEC, 0).module(delta, ends)
    assert torch.equal(delta, torch.zeros(2, 3))
    assert torch.equal(given, half(MOST, -MOST, 0.0))


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


@pytest.mark.parametrize("order", [0, 1])
def test_bytes_are_those_of_float32(order: int) -> None:
    args, kwargs = calls()[0]
    report = deltapass.explain(clipped(), *args, options={"order": order, **OPTIONS}, **kwargs)
    delta = B * T * D * torch.float32.itemsize
    assert f"float16[{B}, {T}, {D}]; {delta} bytes a delta" in report.spans[0]
    model, held = compiled(clipped(), order=order, **OPTIONS), []
    with torch.no_grad(), deltapass.session(steps=STEPS) as session:
        for step, (args, _) in enumerate(calls()):
            session.step(step)
            model(*args)
            held.append(session.nbytes)
    assert max(held) == report.buffer_bytes
