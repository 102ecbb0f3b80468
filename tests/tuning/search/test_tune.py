"""Searching toys: what is found, what it costs to search, and how a search is cut short."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("optuna")

from deltapass.backends.eager import EagerLowering
from own_loop import toy_loop

import deltapass
from deltapass.errors import ContradictoryOptionsError, LoopError, OptionError, TuneError
from deltapass.schedule.explicit import ExplicitSchedule
from deltapass.schedule.rules import Span
from deltapass.tuning.loops import open_loop
from deltapass.tuning.search.metrics import mean, mean_squared_error
from deltapass.tuning.search.tuned import FOUND, LINEAR, PAPER, Tuned

STEPS = 6
FULL = Span(0, 6)
SMALL: dict[str, Any] = {
    "steps": STEPS,
    "seeds": 3,
    "batch": 3,
    "held_out": 0,
    "trials": 6,
    "spans": ("full",),
    "forecasts": ("linear",),
    "metric": "mse",
    "progress": False,
}

pytestmark = [
    pytest.mark.keeps_compiled,
    pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning"),
]


def tuned(loop: Any, **given: Any) -> Tuned:
    return deltapass.tune(loop, **{**SMALL, **given})


def test_the_best_schedule_of_a_small_space_is_found() -> None:
    """Every table of three refreshes is run apart: none is nearer than what the search found."""
    loop = toy_loop()
    found = tuned(loop, budget=0.6, trials=30).found[0]
    errors = {}
    with open_loop(loop, steps=STEPS) as opened:
        plain = opened.run(range(3)).samples
        for others in itertools.combinations(range(1, STEPS), 2):
            full = {0, *others}
            rows = tuple(None if step in full else FULL for step in range(STEPS))
            ours = opened.run(range(3), ExplicitSchedule(rows, "linear")).samples
            errors[rows] = mean([float(each) for each in mean_squared_error(ours, plain)])
    assert found.schedule.rows == min(errors, key=errors.__getitem__)
    assert found.value == pytest.approx(min(errors.values()), rel=1e-4)
    assert len({*errors.values()}) == len(errors)  # the best one is told from the others


def test_what_is_found_keeps_the_budget_and_is_measured_beside_plain_steps() -> None:
    result = tuned(
        toy_loop(),
        budget=(0.7, 0.45),
        trials=8,
        held_out=5,
        spans=None,
        forecasts=("fitted-3", "linear"),
    )
    dear, cheap = result.found
    assert cheap.cost <= 0.45 < dear.cost <= 0.7
    assert dear.value < cheap.value
    kinds = [each.kind for each in result.measured]
    assert [kinds.count(kind) for kind in (PAPER, LINEAR, FOUND)] == [1, 1, 2]
    assert [steps for steps, _, _ in result.plain_curve] == [2, 3, 4, 5]
    assert all(len(each.values) == 5 for each in result.measured)
    rows = {each.name: each for each in result.measured}
    assert rows["3 plain steps"].cost == pytest.approx(0.5)
    assert rows["found: 0.7 of the MACs"].cost == pytest.approx(dear.cost)
    assert "95 % interval" in str(result) and "found: 0.45 of the MACs" in str(result)


def test_the_schedule_travels_and_gives_what_was_measured(tmp_path: Path) -> None:
    loop = toy_loop()
    found = tuned(loop, budget=0.6, forecasts=("fitted-2",)).found[0]
    assert found.schedule.weights and found.schedule.made_for is not None
    assert found.schedule.made_for.steps == STEPS
    deltapass.save_schedule(found.schedule, tmp_path / "found.json")
    again = deltapass.load_schedule(tmp_path / "found.json")
    assert again == found.schedule
    with open_loop(loop, steps=STEPS) as opened:
        plain, ours = opened.run(range(3)), opened.run(range(3), again)
    assert ours.report.forced == 0
    value = mean([float(each) for each in mean_squared_error(ours.samples, plain.samples)])
    assert value == pytest.approx(found.value, rel=1e-4)


def test_trials_compile_nothing_after_the_first(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither Dynamo nor our own lowering makes anything for another candidate."""
    lowered: list[str] = []
    lower = EagerLowering.lower

    def noting(self: EagerLowering, body: Any, *rest: Any) -> Any:
        lowered.append(body.name)
        return lower(self, body, *rest)

    monkeypatch.setattr(EagerLowering, "lower", noting)
    loop = toy_loop()
    forecasts = ("fitted-3", "linear", "reuse", "chebyshev")
    tuned(loop, budget=0.6, trials=1, spans=None, forecasts=forecasts)
    first = len(lowered)
    assert first > 0
    torch._dynamo.utils.counters.clear()
    result = tuned(loop, budget=0.6, trials=12, spans=None, forecasts=forecasts)
    assert result.compiles == (0, 0) and result.counts[0] + result.counts[1] == 12
    assert len(lowered) == first
    assert not torch._dynamo.utils.counters["stats"]


def test_a_target_is_kept_at_the_least_cost() -> None:
    loop = toy_loop()
    result = tuned(loop, target={"plain_steps": 4}, trials=20)
    (found,) = result.found
    with open_loop(loop, steps=STEPS) as opened:
        plain, fewer = opened.run(range(3)).samples, opened.run(range(3), steps=4).samples
    limit = mean([float(each) for each in mean_squared_error(fewer, plain)])
    assert found.goal == "as near as 4 plain steps" and found.value <= limit
    assert all(cost >= found.cost for cost, value in result.trials if value <= limit)
    assert found.cost < 1.0


def test_a_target_may_be_out_of_reach() -> None:
    result = tuned(toy_loop(), target=0.0, trials=3)
    assert not result.found
    assert "MSE of 0: nothing that was tried reaches it" in result.summary


def test_time_may_be_spent_instead() -> None:
    result = tuned(toy_loop(), milliseconds=1e6, trials=3)
    assert result.costs.unit == "milliseconds" and result.costs.full > 0.0
    assert result.found[0].goal == "1e+06 ms"


# ---- storage and interrupts ---------------------------------------------------------------------


def test_a_search_goes_on_where_it_stopped(tmp_path: Path) -> None:
    told: list[int] = []
    loop, storage = toy_loop(told), str(tmp_path / "trials.journal")
    first = tuned(loop, budget=0.6, storage=storage, trials=4)
    told.clear()
    second = tuned(loop, budget=0.6, storage=storage, trials=7)
    assert (sum(first.counts), sum(second.counts)) == (4, 7)
    assert second.trials[:4] == first.trials
    # Plain, probing and recording runs, the three new trials, and nothing of the four old ones.
    alone: list[int] = []
    tuned(toy_loop(alone), budget=0.6, trials=7)
    assert len(told) == len(alone) - 4


def test_ctrl_c_keeps_what_there_is(tmp_path: Path) -> None:
    loop, storage = toy_loop(), str(tmp_path / "trials.journal")
    before: list[int] = []
    tuned(toy_loop(before), budget=0.6, trials=1)
    result = tuned(interrupted(loop, len(before) + 3), budget=0.6, storage=storage, held_out=2)
    assert result.interrupted and not result.measured
    assert len(result.found) == 1 and 0 < result.counts[0] < 6
    assert "interrupted" in result.summary
    rest = tuned(loop, budget=0.6, storage=storage, held_out=2)
    assert not rest.interrupted and sum(rest.counts) == 6
    assert rest.trials[: len(result.trials)] == result.trials


def interrupted(loop: Callable[..., Any], after: int) -> Callable[..., Any]:
    """The loop, with one Ctrl-C in the middle of it."""
    runs = itertools.count()

    def once(seeds: Sequence[int], session: deltapass.Session) -> Any:
        if next(runs) == after:
            raise KeyboardInterrupt
        return loop(seeds, session)

    return once


def test_trials_of_another_search_are_not_taken_over(tmp_path: Path) -> None:
    storage = str(tmp_path / "trials.journal")
    tuned(toy_loop(), budget=0.6, storage=storage, trials=1)
    with pytest.raises(TuneError, match=r"metric was 'MSE' and is 'PSNR'"):
        tuned(toy_loop(), budget=0.6, storage=storage, trials=2, metric="psnr")


# ---- what cannot be followed --------------------------------------------------------------------


def untouched(seeds: Sequence[int], session: deltapass.Session) -> Any:
    raise AssertionError("nothing may be sampled")


@pytest.mark.parametrize(
    "wrong",
    [
        {"budget": 0.0},
        {"budget": 1.5},
        {"budget": True},
        {"budget": ()},
        {"milliseconds": -1.0},
        {"target": {"steps": 3}},
        {"target": {"plain_steps": 0}},
        {"target": float("nan")},
        {"seeds": 0, "budget": 0.5},
        {"seeds": (1, 1), "budget": 0.5},
        {"held_out": (0, 7), "budget": 0.5},
        {"trials": 0, "budget": 0.5},
        {"batch": 0, "budget": 0.5},
        {"forecasts": ("fitted-9",), "budget": 0.5},
        {"forecasts": (), "budget": 0.5},
        {"metric": "ssim", "budget": 0.5},
    ],
)
def test_a_value_that_cannot_be_used_is_an_error_before_any_work(wrong: dict[str, Any]) -> None:
    with pytest.raises(OptionError):
        tuned(untouched, **wrong)


def test_one_thing_is_looked_for() -> None:
    with pytest.raises(OptionError, match="budget"):
        tuned(untouched)
    with pytest.raises(ContradictoryOptionsError):
        tuned(untouched, budget=0.5, target=0.1)


def test_spans_must_be_those_of_the_model() -> None:
    with pytest.raises(OptionError, match="within 6 blocks"):
        tuned(toy_loop(), budget=0.5, spans=("deep:7",))


def test_a_target_of_all_steps_is_none() -> None:
    with pytest.raises(OptionError, match="fewer than the 6 plain steps"):
        tuned(toy_loop(), target={"plain_steps": STEPS})


def test_a_budget_below_the_cheapest_schedule_is_an_error() -> None:
    with pytest.raises(TuneError, match="below the least possible"):
        tuned(toy_loop(), budget=0.05)


@pytest.mark.filterwarnings("ignore:nothing cached")
def test_a_loop_without_a_model_is_an_error() -> None:
    with pytest.raises(LoopError, match="called no model"):
        tuned(lambda seeds, session: torch.ones(len(seeds), 2), budget=0.5)
