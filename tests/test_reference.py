"""The oracle is checked against plain models, hand calculation, and a loop written otherwise."""

from __future__ import annotations

from dataclasses import dataclass

import models
import pytest
import torch
from reference import Call, DeltaCacheReference
from torch import Tensor, nn


@dataclass(frozen=True)
class Span:
    start: int
    stop: int


def trajectory(model: models.Denoiser, steps: int = 6) -> list[Call]:
    return [model.inputs(1000.0 - 150.0 * step, seed=step) for step in range(steps)]


def oracle(model: models.Denoiser, order: int = 0) -> DeltaCacheReference:
    return DeltaCacheReference(model, model.blocks_in_order(), model.streams, order)


class Scale(nn.Module):
    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, hidden_states: Tensor) -> Tensor:
        return self.factor * hidden_states


def scalars(*values: float) -> list[Call]:
    return [((torch.tensor([value]),), {}) for value in values]


@pytest.mark.parametrize("name", models.TOYS)
def test_interval_one_equals_the_plain_model(name: str) -> None:
    model = models.make(name)
    calls = trajectory(model)
    with torch.no_grad():
        plain = [model(*args, **kwargs) for args, kwargs in calls]
    outputs = oracle(model).run([None] * len(calls), calls)
    for expected, actual in zip(plain, outputs, strict=True):
        assert torch.isfinite(actual).all()
        assert torch.equal(actual, expected)


@pytest.mark.parametrize("name", [name for name in models.TOYS if name != "no_blocks"])
def test_every_toys_blocks_do_something(name: str) -> None:
    model = models.make(name)
    calls = trajectory(model)
    span = Span(3, 6) if name == "side_value" else Span(1, 6)
    for cached_span in (span, Span(0, 2)):
        table = [None, cached_span, None, cached_span, cached_span, None]
        cached, plain = oracle(model).run(table, calls), oracle(model).run([None] * 6, calls)
        same = [torch.equal(one, two) for one, two in zip(cached, plain, strict=True)]
        assert same == [row is None for row in table]


def test_oracle_restores_the_blocks() -> None:
    model = models.make("adaln")
    oracle(model).run([None, Span(0, 6)], trajectory(model, 2))
    assert not any("forward" in vars(block) for block in model.blocks)


def test_cached_step_runs_only_the_blocks_outside_the_span() -> None:
    reference = oracle(model := models.make("adaln"))
    reference.run([None, Span(2, 6), Span(0, 5), None], trajectory(model, 4))
    assert reference.blocks_run == [6, 2, 1, 6]


def test_cached_step_adds_the_last_delta_to_the_live_in() -> None:
    # Refresh: 1 -> 2 -> 6, so the span of both has delta 5 and the second block alone delta 4.
    model = nn.Sequential(Scale(2.0), Scale(3.0))
    table = [None, Span(0, 2), Span(1, 2), Span(0, 1)]
    outputs = DeltaCacheReference(model, list(model)).run(table, scalars(1.0, 2.0, 2.0, 5.0))
    assert [output.item() for output in outputs] == [6.0, 2 + 5, 2 * 2 + 4, 3 * (5 + 1)]


def test_order_one_extrapolates_from_the_last_two_refreshes() -> None:
    # Deltas 5 and 10 at steps 0 and 2, so 12.5 and 15 at steps 3 and 4; one refresh: the same 5.
    model = nn.Sequential(Scale(2.0), Scale(3.0))
    span = Span(0, 2)
    table = [None, span, None, span, span]
    reference = DeltaCacheReference(model, list(model), order=1)
    outputs = reference.run(table, scalars(1.0, 1.0, 2.0, 2.0, 2.0))
    assert [output.item() for output in outputs] == [6.0, 1 + 5, 12.0, 2 + 12.5, 2 + 15]


def test_order_one_goes_by_given_positions() -> None:
    model = nn.Sequential(Scale(2.0), Scale(3.0))
    reference = DeltaCacheReference(model, list(model), order=1)
    table = [None, None, Span(0, 2)]
    outputs = reference.run(table, scalars(1.0, 2.0, 2.0), positions=[1.0, 0.5, 0.25])
    assert outputs[-1].item() == 2 + 12.5


@torch.no_grad()
def adaln_by_hand(
    model: models.AdaLNDenoiser, span: Span, interval: int, calls: list[Call]
) -> list[Tensor]:
    outputs, kept = [], torch.empty(0)
    for step, ((latent, timestep), _) in enumerate(calls):
        conditioning = model.conditioning(timestep)
        before = model.embedding(latent)
        for block in model.blocks[: span.start]:
            before = block(before, conditioning)
        if step % interval == 0:
            after = before
            for block in model.blocks[span.start : span.stop]:
                after = block(after, conditioning)
            kept = after - before
        else:
            after = before + kept
        for block in model.blocks[span.stop :]:
            after = block(after, conditioning)
        outputs.append(model.head(after, conditioning))
    return outputs


@pytest.mark.parametrize("span", [Span(2, 6), Span(0, 4), Span(1, 5), Span(0, 6)])
def test_oracle_equals_a_loop_written_otherwise(span: Span) -> None:
    model = models.make("adaln", reuse_first=True)
    assert isinstance(model, models.AdaLNDenoiser)
    calls = trajectory(model)
    table = [None if step % 3 == 0 else span for step in range(len(calls))]
    outputs = oracle(model).run(table, calls)
    for expected, actual in zip(adaln_by_hand(model, span, 3, calls), outputs, strict=True):
        assert torch.equal(actual, expected)
