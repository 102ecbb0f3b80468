"""selector/halving.py: cross-attention kept with guidance goes on without it, as the mean."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from cross_attention_oracle import CrossAttentionOracle, attentions_of
from driving import compiled, tensors
from models.cross import CrossDenoiser, cross_denoiser
from models.streams import Call
from torch import Tensor

import deltapass
from deltapass.graph.program import TensorSpec
from deltapass.schedule.presets import tgate
from deltapass.schedule.rules import Schedule, Span
from deltapass.selector.halving import is_half
from deltapass.sessions.report import SessionReport

STEPS, GATE = 6, 3
ALL = Span(0, 4, "cross-attention")
TABLE = (None,) * GATE + (ALL,) * (STEPS - GATE)


def half(call: Call) -> Call:
    """The conditional half, the second one as diffusers has it."""
    args, kwargs = call
    return tuple(value[1:] for value in args), {n: value[1:] for n, value in kwargs.items()}


def calls_of(model: CrossDenoiser, off: int = GATE) -> list[Call]:
    """A trajectory with guidance up to step `off`."""
    calls = [model.inputs(step / STEPS, step) for step in range(STEPS)]
    return [call if step < off else half(call) for step, call in enumerate(calls)]


def sampled(model: Any, calls: list[Call]) -> tuple[list[Tensor], SessionReport]:
    with torch.no_grad(), deltapass.session(steps=STEPS) as session:
        outputs = []
        for step, (args, kwargs) in enumerate(calls):
            session.step(step)
            outputs.append(model(*args, **kwargs))
    return tensors(outputs), session.report()


def expected_of(model: CrossDenoiser, calls: list[Call]) -> list[Tensor]:
    oracle = CrossAttentionOracle(model, attentions_of(list(model.blocks)))
    return tensors(oracle.run(TABLE, calls))


@pytest.mark.parametrize("dynamic", [False, None])
def test_calls_of_half_the_batch_read_the_mean_of_both_halves(dynamic: bool | None) -> None:
    model = cross_denoiser()
    options = {"lowering": "eager", "schedule": tgate(GATE, halves=True)}
    ours = torch.compile(model, backend="deltadit", dynamic=dynamic, options=options)
    calls = calls_of(model)
    for _ in range(2):  # the second trajectory begins with guidance again
        outputs, report = sampled(ours, calls)
        assert tuple(entry.realised for entry in report.entries) == TABLE
        assert all(map(torch.equal, outputs, expected_of(model, calls)))


def test_without_a_word_of_the_schedule_half_a_batch_refreshes() -> None:
    model = cross_denoiser()
    calls = calls_of(model)
    outputs, report = sampled(compiled(model, schedule="tgate", gate=GATE), calls)
    assert report.entries[GATE].realised is None
    assert report.entries[GATE].cause is deltapass.Cause.BATCH
    args, kwargs = calls[GATE]
    assert torch.equal(outputs[GATE], model(*args, **kwargs))
    assert report.entries[GATE + 1].realised == ALL  # by what it kept itself


def test_guidance_may_end_later_than_the_gate() -> None:
    model = cross_denoiser()
    calls = calls_of(model, off=GATE + 1)
    outputs, report = sampled(compiled(model, schedule=tgate(GATE, halves=True)), calls)
    assert tuple(entry.realised for entry in report.entries) == TABLE
    assert all(map(torch.equal, outputs, expected_of(model, calls)))


def test_guidance_that_begins_again_refreshes() -> None:
    model = cross_denoiser()
    calls = calls_of(model)
    calls[-1] = model.inputs(5 / STEPS, 5)
    outputs, report = sampled(compiled(model, schedule=tgate(GATE, halves=True)), calls)
    assert report.entries[-1].cause is deltapass.Cause.BATCH
    args, kwargs = calls[-1]
    assert torch.equal(outputs[-1], model(*args, **kwargs))


def test_deltas_are_never_halved() -> None:
    model = cross_denoiser()
    schedule = Schedule(gate=GATE, halves=True, outline="deep", detail="deep", cached_blocks=3)
    _, report = sampled(compiled(model, schedule=schedule), calls_of(model))
    assert report.entries[GATE].cause is deltapass.Cause.BATCH


def test_weights_that_change_meanwhile_refresh() -> None:
    model = cross_denoiser()
    ours = compiled(model, schedule=tgate(GATE, halves=True))
    calls = calls_of(model)
    with torch.no_grad(), deltapass.session(steps=STEPS) as session:
        for step, (args, kwargs) in enumerate(calls):
            session.step(step)
            if step == GATE:
                model.last.weight.add_(0.1)
            output = ours(*args, **kwargs)
            if step == GATE:
                assert torch.equal(output, model(*args, **kwargs))
    assert session.report().entries[GATE].realised is None


def spec(*shape: int, dtype: torch.dtype = torch.float32) -> TensorSpec:
    return TensorSpec.of(torch.empty(shape, dtype=dtype))


@pytest.mark.parametrize(
    ("before", "now", "wanted"),
    [
        ([spec(4, 8), spec(4, 5)], [spec(2, 8), spec(2, 5)], True),
        ([spec(4, 8), spec(7, 3)], [spec(2, 8), spec(7, 3)], True),  # positions
        ([spec(4, 8), spec(4, 5)], [spec(4, 8), spec(2, 5)], False),  # the sample did not halve
        ([spec(4, 8), spec(4, 5)], [spec(2, 8), spec(1, 5)], False),
        ([spec(4, 8)], [spec(2, 9)], False),
        ([spec(4, 8)], [spec(2, 8, dtype=torch.float64)], False),
        ([spec(6, 8)], [spec(2, 8)], False),
        ([], [], False),
    ],
)
def test_half_a_batch_is_told_by_all_inputs(before: Any, now: Any, wanted: bool) -> None:
    named = [[(f"x{at}", each) for at, each in enumerate(specs)] for specs in (before, now)]
    assert is_half(*named) == wanted
    assert not named[0] or not is_half(named[0], [("other", each) for _, each in named[1]])
