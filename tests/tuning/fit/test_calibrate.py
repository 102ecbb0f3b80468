"""Calibrating toys, tiny pipelines and the embedded model."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from driving import compiled
from models import make
from own_loop import seeded, toy_loop

import deltapass
from deltapass.errors import (
    CalibrationError,
    CalibrationWarning,
    LoopError,
    OptionError,
    ScheduleError,
)
from deltapass.schedule.explicit import ExplicitSchedule
from deltapass.schedule.made_for import Sampler
from deltapass.schedule.rules import Schedule, Span
from deltapass.schedule.weights import Weights
from deltapass.tuning.fit.calibrate import fit_rows
from deltapass.tuning.fit.calibration import Calibration
from deltapass.tuning.loops import open_loop
from deltapass.tuning.subject import look_at

pytestmark = pytest.mark.keeps_compiled

STEPS = 8
ROWS = tuple(None if step < 2 or step % 2 == 0 else Span(1, 5) for step in range(STEPS))
SCHEDULE = ExplicitSchedule(ROWS, "linear")
TRAINED, HELD_OUT = range(6), range(100, 108)


def distance(loop: Any, schedule: Any) -> float:
    """How far the final samples are from the plain ones."""
    plain, ours = loop.run(HELD_OUT), loop.run(HELD_OUT, schedule)
    assert ours.report.forced == 0
    return float((ours.samples - plain.samples).norm() / plain.samples.norm())


def test_fitted_weights_are_nearer_on_held_out_seeds() -> None:
    loop = toy_loop()
    found = deltapass.calibrate(loop, schedule=SCHEDULE, steps=STEPS, seeds=TRAINED, progress=False)
    cached = [step for step, row in enumerate(ROWS) if row is not None]
    assert [row.step for row in found.rows] == cached
    assert all(row.unseen for row in found.rows)
    assert [len(row.weights) for row in found.rows] == [3] * len(cached)
    with open_loop(loop, steps=STEPS) as opened:
        assert distance(opened, found.schedule) < distance(opened, SCHEDULE)


def test_weights_are_fitted_to_features_too() -> None:
    loop = toy_loop()
    features = SCHEDULE.keeping("feature")
    found = deltapass.calibrate(loop, schedule=features, steps=STEPS, seeds=TRAINED, progress=False)
    assert isinstance(found.schedule, ExplicitSchedule)
    assert found.schedule.rows == features.rows
    with open_loop(loop, steps=STEPS) as opened:
        assert distance(opened, found.schedule) < distance(opened, features)


def test_one_sample_leaves_the_weights_near_linear() -> None:
    """A third of the way to what that sample alone says, and no harm on others."""
    loop = toy_loop()

    def fit(seeds: int, **how: Any) -> tuple[torch.Tensor, Calibration]:
        found = deltapass.calibrate(
            loop, schedule=SCHEDULE, steps=STEPS, seeds=seeds, batch=8, progress=False, **how
        )
        return torch.tensor(found.rows[0].weights), found

    linear = torch.tensor((*SCHEDULE.forecast.weights(3, (2, 1)), 0.0))
    (one, found), (free, _), (many, _) = fit(1), fit(1, regularisation=0.0), fit(8)
    assert torch.allclose(one - linear, (free - linear) / 3, atol=1e-5)
    assert (many - linear).norm() > 2 * (one - linear).norm() > 0
    with open_loop(loop, steps=STEPS) as opened:
        assert distance(opened, found.schedule) < 1.02 * distance(opened, SCHEDULE)


def test_the_walk_is_on_its_own_predictions() -> None:
    """What a batch gives while it is fitted is what its weights give when they are used."""
    loop, seen = toy_loop(), []

    def noting(seeds: Sequence[int], session: deltapass.Session) -> torch.Tensor:
        seen.append(loop(seeds, session))
        return seen[-1]

    found = deltapass.calibrate(
        noting, schedule=SCHEDULE, steps=STEPS, seeds=3, batch=3, progress=False
    )
    with open_loop(loop, steps=STEPS) as opened:
        used = opened.run(range(3), found.schedule).samples
    kept = [row.kept for row in found.rows]
    assert all(kept)
    assert torch.allclose(seen[-1], used, atol=1e-6)


def test_many_tables_are_fitted_without_a_compile() -> None:
    tables = [
        ExplicitSchedule(tuple(None if step in full else span for step in range(STEPS)))
        for full, span in (((0, 1, 4), Span(1, 5)), ((0, 2, 3, 6), Span(0, 4)), ((0,), Span(2, 6)))
    ]
    with open_loop(toy_loop(), steps=STEPS) as loop:
        subject = look_at(loop, (0, 1))
        torch._dynamo.utils.counters.clear()
        found = [fit_rows(loop, subject, table, [(0, 1)]) for table in tables]
        samples = [loop.run((0, 1), one.schedule) for one in found]
    assert not torch._dynamo.utils.counters["stats"]
    assert [one.schedule.rows for one in found] == [table.rows for table in tables]
    assert all(one.report.as_planned for one in samples)


def test_a_report_is_text_and_json() -> None:
    found = deltapass.calibrate(toy_loop(), schedule=SCHEDULE, steps=STEPS, seeds=2, progress=False)
    lines = str(found).splitlines()
    assert lines[0] == found.summary and len(lines) == 2 + len(found.rows)
    content = json.loads(found.to_json())
    assert content["samples"] == 2 and content["summary"] == found.summary
    assert [row["step"] for row in content["rows"]] == [3, 5, 7]
    assert content["rows"][0]["weights"] == pytest.approx(found.rows[0].weights)


def test_one_weight_scales_the_newest_delta() -> None:
    schedule = ExplicitSchedule(ROWS, "reuse")
    found = deltapass.calibrate(
        toy_loop(), schedule=schedule, steps=STEPS, seeds=2, weights=1, progress=False
    )
    assert found.schedule.predictor == "reuse"
    assert [len(row.weights) for row in found.rows] == [1, 1, 1]
    assert all(row.error <= row.predicted for row in found.rows)


def test_a_schedule_says_what_it_was_made_for() -> None:
    sampler = Sampler(scheduler="Euler", guidance=2.0)
    found = deltapass.calibrate(
        toy_loop(), schedule=SCHEDULE, steps=STEPS, seeds=1, sampler=sampler, progress=False
    )
    made_for = found.schedule.made_for
    assert made_for is not None and made_for.sampler == sampler
    assert (made_for.blocks, made_for.steps, len(made_for.structure)) == (6, STEPS, 16)
    assert not any(row.unseen for row in found.rows)


def test_a_schedule_travels_as_a_file(tmp_path: Any) -> None:
    found = deltapass.calibrate(toy_loop(), schedule=SCHEDULE, steps=STEPS, seeds=2, progress=False)
    deltapass.save_schedule(found.schedule, tmp_path / "made.json")
    assert deltapass.load_schedule(tmp_path / "made.json") == found.schedule


@pytest.mark.parametrize("predictor", ["reuse", "quadratic"])
@pytest.mark.parametrize("weights", [1, 3])
def test_a_schedule_keeps_its_predictor(predictor: str, weights: int) -> None:
    rule = Schedule(cached_blocks=4, warm_up=2, predictor=predictor)
    found = deltapass.calibrate(
        toy_loop(), schedule=rule, steps=STEPS, seeds=1, weights=weights, progress=False
    )
    assert found.schedule.predictor == predictor
    assert found.schedule.rows == rule.table(STEPS, 6)


def test_a_predictor_that_keeps_no_deltas_is_an_error() -> None:
    rule = Schedule(cached_blocks=4, warm_up=2, predictor="chebyshev")
    with pytest.raises(ScheduleError, match="'chebyshev' keeps no deltas"):
        deltapass.calibrate(toy_loop(), schedule=rule, steps=STEPS, seeds=1, progress=False)


def two_branches(seen: list[torch.Tensor]) -> Any:
    """A loop of which the branches move differently; `seen` takes its samples."""
    toy = make("adaln")
    model = compiled(toy, schedule="none")

    def loop(seeds: Sequence[int], session: deltapass.Session) -> torch.Tensor:
        shape = toy.inputs(999.0, 0)[0][0].shape[1:]
        sample = torch.stack([torch.randn(shape, generator=seeded(seed)) for seed in seeds])
        for step in range(STEPS):
            outs = []
            for branch, faster in (("cond", 1.0), ("uncond", 3.0)):
                session.step(step, branch=branch)
                level = torch.full((len(seeds),), 0.2 * faster * (STEPS - step))
                outs.append(model(faster * sample, level))
            sample = sample - (2.0 * outs[0] - outs[1]) / STEPS
        seen.append(sample)
        return sample

    return loop


def test_branches_are_run_by_their_own_weights() -> None:
    """What the last batch gave by them is what the schedule gives, and not without them."""
    seen: list[torch.Tensor] = []
    loop = two_branches(seen)
    found = deltapass.calibrate(
        loop, schedule=SCHEDULE, steps=STEPS, seeds=2, batch=2, per_branch=True, progress=False
    )
    walked = seen[-1]
    assert {row.branch for row in found.rows} == {"cond", "uncond"}
    assert all(row.kept for row in found.rows)
    assert found.summary.startswith("3 rows fitted") and found.summary.endswith("3 rows with these")
    shared = tuple(w and Weights(w.shared) for w in found.schedule.weights)
    with open_loop(loop, steps=STEPS) as opened:
        used = opened.run((0, 1), found.schedule).samples
        without = opened.run((0, 1), replace(found.schedule, weights=shared)).samples
    assert torch.allclose(walked, used, atol=1e-6)
    assert not torch.allclose(walked, without, atol=1e-4)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_model_that_overflows_is_named(value: float) -> None:
    toy = make("adaln")
    model = compiled(toy, schedule="none")

    def loop(seeds: Sequence[int], session: deltapass.Session) -> torch.Tensor:
        sample = torch.ones(len(seeds), *toy.inputs(999.0, 0)[0][0].shape[1:])
        for step in range(STEPS):
            session.step(step)
            sample = model(sample * (value if step == 5 else 1.0), torch.full((len(seeds),), 1.0))
        return sample

    with pytest.raises(CalibrationError, match="deltas of step 5, branch -, are infinite"):
        deltapass.calibrate(loop, schedule=SCHEDULE, steps=STEPS, seeds=1, progress=False)


def test_a_poor_fit_is_said() -> None:
    """Noise drawn anew at every step: no earlier delta tells the next one."""
    toy = make("adaln")
    model = compiled(toy, schedule="none")

    def loop(seeds: Sequence[int], session: deltapass.Session) -> torch.Tensor:
        generator = seeded(seeds[0])
        shape = toy.inputs(999.0, 0)[0][0].shape[1:]
        for step in range(STEPS):
            session.step(step)
            sample = torch.randn(len(seeds), *shape, generator=generator)
            out: torch.Tensor = model(sample, torch.full((len(seeds),), 900.0 - 100 * step))
        return out

    with pytest.warns(CalibrationWarning, match="the fit explains little at step 3, 5, 7"):
        found = deltapass.calibrate(loop, schedule=SCHEDULE, steps=STEPS, seeds=4, progress=False)
    assert [row.step for row in found.weak] == [3, 5, 7]


def test_a_schedule_that_caches_nothing_is_an_error() -> None:
    told: list[int] = []
    with pytest.raises(CalibrationError, match="none of 8 calls was cached; the schedule"):
        deltapass.calibrate(toy_loop(told), schedule="none", steps=STEPS, seeds=8, progress=False)
    assert told == [STEPS]  # said after the first batch


@pytest.mark.filterwarnings("ignore:nothing cached")
def test_a_loop_without_a_model_is_an_error() -> None:
    with pytest.raises(LoopError, match="called no model"):
        deltapass.calibrate(lambda seeds, session: torch.ones(len(seeds), 2), progress=False)


@pytest.mark.parametrize(
    "wrong",
    [
        {"weights": 5},
        {"weights": True},
        {"regularisation": -1.0},
        {"seeds": 0},
        {"seeds": [3, 4, 3]},
        {"batch": 0},
        {"batch": 1.5},
        {"batch": True},
    ],
)
def test_numbers_out_of_range_are_errors(wrong: dict[str, Any]) -> None:
    with pytest.raises(OptionError, match=next(iter(wrong))):
        deltapass.calibrate(toy_loop(), steps=STEPS, progress=False, **wrong)


# ---- use elsewhere ----------------------------------------------------------------------------


def test_another_model_is_named_once() -> None:
    found = deltapass.calibrate(toy_loop(), schedule=SCHEDULE, steps=STEPS, seeds=1, progress=False)
    toy = make("adaln")
    toy.out = torch.nn.Sequential(
        toy.out, torch.nn.Linear(toy.out.out_features, toy.out.out_features)
    )
    other = toy_loop(toy=toy)
    with open_loop(other, steps=STEPS) as opened:
        with pytest.warns(CalibrationWarning, match="the shapes of the model's weights differ"):
            opened.run((0,), found.schedule)
        opened.run((0,), found.schedule)  # said once
