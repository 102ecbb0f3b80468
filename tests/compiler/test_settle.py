"""compiler/settle.py: budgets in MACs of real graphs, and what then runs."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from driving import compiled, follow
from models import AdaLNBlock, D, make
from reference import Call
from torch import nn

import deltapass
from deltapass.backend import analyse
from deltapass.compiler.outline import Outline
from deltapass.compiler.settle import StepCosts, plan_for
from deltapass.compiler.tracing import trace
from deltapass.errors import RefusalWarning, ScheduleError
from deltapass.options import DEFAULT_STEPS, parse_options
from deltapass.schedule.budget import StepMacs, table_macs
from deltapass.schedule.rules import Schedule, Span

SHARES = (0.95, 0.7, 0.6, 0.45)
STEPS = 9


def uneven() -> nn.Module:
    """Six blocks, each with a wider MLP than the one before."""
    model = make("adaln")
    for index, block in enumerate(model.blocks):
        assert isinstance(block, AdaLNBlock)
        wide = (index + 1) * D
        block.mlp = nn.Sequential(nn.Linear(D, wide), nn.GELU(), nn.Linear(wide, D))
    return model.eval().requires_grad_(False)


def toy(name: str) -> tuple[nn.Module, Callable[[int], Call]]:
    """A model, and its inputs at a step of STEPS."""
    if name.startswith("tiny "):
        pytest.importorskip("diffusers")
        from models.tiny import make_tiny

        tiny = make_tiny(name.removeprefix("tiny "))
        return tiny.model, lambda step: tiny.call(1 - step / STEPS, step)
    model: Any = uneven() if name == "uneven" else make(name)
    return model, lambda step: model.inputs(1000.0 * (1 - step / STEPS), step)


MODELS = ("adaln", "two_stream", "uneven", "tiny dit", "tiny flux")


@functools.cache
def outlined(name: str) -> Outline:
    model, inputs = toy(name)
    args, kwargs = inputs(0)
    return analyse(*trace(model, args, kwargs))


def blocks_of(name: str) -> tuple[int, StepMacs]:
    return len(outlined(name).stack), StepCosts(outlined(name), 0)


def chosen(name: str, share: float, **options: object) -> Schedule:
    plan = plan_for(outlined(name), parse_options({"budget": share, **options}))
    assert isinstance(plan.schedule, Schedule)
    return plan.schedule


def test_blocks_of_the_uneven_model_differ_in_cost() -> None:
    assert len({macs.full for macs in outlined("uneven").block_macs}) == 6
    assert len({macs.full for macs in outlined("tiny flux").block_macs}) > 1


@pytest.mark.parametrize("name", MODELS)
def test_steps_cost_what_blocks_and_surroundings_do(name: str) -> None:
    blocks, macs = blocks_of(name)
    of_blocks = [block.full for block in outlined(name).block_macs]
    assert 0 < macs(None) - sum(of_blocks) < macs(None)
    spans = (Span(blocks - 2, blocks), Span(0, 1), Span(0, blocks))
    for span in spans:
        less = sum(of_blocks[span.start : span.stop])
        assert macs(span) == pytest.approx(macs(None) - less)


@pytest.mark.parametrize("share", SHARES)
@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("boundary", [None, 0.2, 4])
def test_budget_is_kept_and_the_next_larger_choice_exceeds_it(
    name: str, share: float, boundary: int | float | None
) -> None:
    blocks, macs = blocks_of(name)
    schedule = chosen(name, share, boundary=boundary, steps=STEPS)
    assert schedule.boundary == boundary

    def reached(interval: int, cached: int) -> float:
        rule = Schedule(interval=interval, cached_blocks=cached, boundary=boundary)
        return table_macs(rule.table(STEPS, blocks), blocks, macs) / (STEPS * macs(None))

    interval, cached = schedule.interval, schedule.cached_blocks
    assert cached
    assert reached(interval, cached) <= share
    assert reached(interval, cached - 1) > share
    assert interval == 2 or reached(interval - 1, blocks) > share


@pytest.mark.parametrize("share", [0.7, 0.5])
@pytest.mark.parametrize("name", MODELS)
def test_what_runs_costs_what_explain_predicted(name: str, share: float) -> None:
    model, inputs = toy(name)
    calls = [inputs(step) for step in range(STEPS)]
    options = {"budget": share, "steps": STEPS}
    args, kwargs = calls[0]
    predicted = deltapass.explain(model, *args, options=options, **kwargs)
    with deltapass.session(steps=STEPS) as session:
        follow(compiled(model, **options), calls, session)
    report = session.report()
    assert report.as_planned
    assert report.macs == predicted.trajectory_macs
    assert report.full_macs == predicted.plain_macs
    assert predicted.budget == share
    assert predicted.share <= share
    assert report.macs.full / report.full_macs.full == predicted.share


def test_without_steps_the_choice_is_that_of_the_default_number() -> None:
    for share in (0.7, 0.2):
        assert chosen("adaln", share) == chosen("adaln", share, steps=DEFAULT_STEPS)
    assert chosen("adaln", 0.2).interval <= DEFAULT_STEPS
    with pytest.raises(ScheduleError, match="the least possible share"):
        chosen("adaln", 0.02)
    with pytest.raises(ScheduleError, match="needs the number of steps: its budget"):
        chosen("adaln", 0.7, boundary=4)


def test_a_later_shape_out_of_reach_runs_in_full() -> None:
    """Few tokens make what lies around the blocks a larger share of the model."""
    model = make("adaln")
    few, many = (torch.randn(2, tokens, 4) for tokens in (4, 16))
    (_, timestep), _ = model.inputs(999.0, 0)
    options = {"lowering": "eager", "budget": 0.13, "steps": STEPS}
    with torch.no_grad():
        run = torch.compile(model, backend="deltadit", dynamic=True, options=options)
        with warnings.catch_warnings():
            warnings.simplefilter("error", RefusalWarning)
            run(many, timestep)
        with pytest.warns(RefusalWarning, match="the least possible share"):
            assert torch.equal(run(few, timestep), model(few, timestep))
        torch.compiler.reset()
        strict = {**options, "strict": True}
        run = torch.compile(model, backend="deltadit", dynamic=True, options=strict)
        run(many, timestep)
        with pytest.raises(ScheduleError, match="the least possible share"):
            run(few, timestep)
        torch.compiler.reset()
        unknown = {"lowering": "eager", "budget": 0.7, "boundary": 4}
        run = torch.compile(model, backend="deltadit", dynamic=True, options=unknown)
        with pytest.raises(ScheduleError, match="needs the number of steps"):
            run(many, timestep)


def test_a_budget_out_of_reach_names_the_least_share() -> None:
    blocks, macs = blocks_of("adaln")
    least = (macs(None) + 8 * macs(Span(0, blocks))) / (STEPS * macs(None))
    with pytest.raises(ScheduleError, match="the least possible share") as caught:
        chosen("adaln", 0.1, steps=STEPS)
    named = float(caught.value.fact.split("below ")[1].split(",")[0])
    assert least <= named < least + 0.001
    assert chosen("adaln", named, steps=STEPS).interval == STEPS


def test_blocks_that_cannot_be_cached_are_not_counted_as_saved() -> None:
    """A value leaves a span of this model for the head, so that wanted spans shrink."""
    blocks, macs = blocks_of("side_value")
    schedule = chosen("side_value", 0.8, steps=STEPS)
    table = schedule.table(STEPS, blocks)
    assert table_macs(table, blocks, macs) <= 0.8 * STEPS * macs(None)
    model, inputs = toy("side_value")
    args, kwargs = inputs(0)
    options = {"budget": 0.8, "steps": STEPS}
    assert deltapass.explain(model, *args, options=options, **kwargs).share <= 0.8


def test_export_takes_a_budget(tmp_path: Any) -> None:
    pytest.importorskip("onnxruntime")
    model, inputs = toy("adaln")
    args, kwargs = inputs(0)
    plan = deltapass.export(model, args, kwargs, tmp_path / "bundle", budget=0.7, steps=STEPS)
    predicted = deltapass.explain(model, *args, options={"budget": 0.7, "steps": STEPS}, **kwargs)
    assert plan.macs["trajectory"] == predicted.trajectory_macs.full
    assert plan.macs["trajectory"] <= 0.7 * plan.macs["plain_trajectory"]
    assert plan.schedule["cached_blocks"] == chosen("adaln", 0.7, steps=STEPS).cached_blocks


@pytest.mark.parametrize("order", [0, 1])
def test_a_whole_budget_runs_the_plain_model(order: int) -> None:
    model, inputs = toy("adaln")
    calls = [inputs(step) for step in range(3)]
    run = compiled(model, budget=1.0, steps=3, order=order)
    with torch.no_grad():
        for (args, kwargs), out in zip(calls, follow(run, calls), strict=True):
            assert torch.equal(out, model(*args, **kwargs))
