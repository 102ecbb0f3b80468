"""What is planned for a call, with a session and by noise level."""

from __future__ import annotations

import math

import pytest
import torch
from driving import compiled, follow, sampled
from models import make

import deltapass
from deltapass.assembly import model_info
from deltapass.backend import analyse
from deltapass.compiler.lowering import LoweredBodies, load_lowering
from deltapass.compiler.plan import make_plan
from deltapass.compiler.tracing import trace
from deltapass.compiler.variants import Variants
from deltapass.errors import RefusalWarning, StepUnknownError
from deltapass.schedule.explicit import AnySchedule
from deltapass.schedule.rules import Schedule, Span
from deltapass.selector.call import CallFinder, PlannedCall

DEEP, SHALLOW = Span(2, 6), Span(0, 4)
SCHEDULE = Schedule(cached_blocks=4, boundary=0.5)


class Finder:
    """Asks for the plan of calls at given timesteps."""

    def __init__(self, schedule: AnySchedule = SCHEDULE, **known: int) -> None:
        toy = make("adaln")
        graph, inputs = trace(toy, *toy.inputs(999.0, 0))
        outlined = analyse(graph, inputs)
        plan = make_plan(outlined, schedule, **known)
        bodies = LoweredBodies("eager", load_lowering("eager"))
        variants = Variants(outline=outlined, bodies=bodies)
        self.calls = CallFinder(model_info(plan, variants.key), variants)
        self.arguments = list(inputs)
        assert self.calls.reader is not None
        self.reader = self.calls.reader

    def at(self, timestep: float) -> PlannedCall:
        self.arguments[self.reader.timestep] = torch.full((2,), timestep)
        for at in self.reader.samples:
            self.arguments[at] = torch.full_like(self.arguments[at], timestep)
        return self.calls.find(self.arguments)


def test_boundary_lies_at_the_noise_level_where_its_step_would_fall() -> None:
    finder = Finder()
    planned = [finder.at(1000.0 * (1 - step / 20)).row.planned for step in range(20)]
    assert planned == list(SCHEDULE.table(20, 6))


def test_refresh_before_the_boundary_emits_both_deltas_and_after_it_one() -> None:
    finder = Finder()
    emits = [set(finder.at(1000.0 * (1 - step / 20)).row.emits) for step in range(20)]
    assert emits[0] == {DEEP, SHALLOW}
    assert emits[12] == {SHALLOW}


def test_known_steps_emit_only_what_is_read() -> None:
    finder = Finder(steps=20)
    emits = [set(finder.at(1000.0 * (1 - step / 20)).row.emits) for step in range(20)]
    assert emits[0] == {DEEP}
    assert emits[10] == {SHALLOW}


def test_image_to_image_that_starts_half_way_is_in_the_detail_phase() -> None:
    finder = Finder()
    assert [finder.at(t).row.planned for t in (450.0, 400.0)] == [None, SHALLOW]


def test_session_wins_over_the_timestep() -> None:
    finder = Finder()
    with deltapass.session(steps=4) as session:
        session.step(3)
        assert finder.at(999.0).place.step == 3


def test_schedule_that_counts_steps_needs_them() -> None:
    with pytest.raises(StepUnknownError, match="trajectory's length"):
        Finder(Schedule(cached_blocks=4, boundary=3)).at(999.0)


def test_more_steps_than_announced_are_refused() -> None:
    finder = Finder(steps=2)
    finder.at(999.0)
    finder.at(500.0)
    with pytest.raises(StepUnknownError, match="longer than the 2 steps announced"):
        finder.at(100.0)


@pytest.mark.parametrize("steps", [4, 8])
def test_few_step_trajectories_of_unknown_length_run_in_full_and_say_so(steps: int) -> None:
    toy = make("adaln")
    model = compiled(toy)
    times = [1000.0 * (1 - step / steps) for step in range(steps)]
    calls = sampled([toy.inputs(timestep, at) for at, timestep in enumerate(times)])
    with pytest.warns(RefusalWarning, match="few-step"):
        outputs = follow(model, calls)
    assert all(torch.equal(a, b) for a, b in zip(outputs, follow(toy, calls), strict=True))


@pytest.mark.parametrize("shift", [1.0, 3.0, 12.0])
@pytest.mark.parametrize("steps", [9, 12, 20])
def test_more_than_few_steps_are_cached_with_nothing_but_the_backend(
    steps: int, shift: float
) -> None:
    toy = make("adaln")
    model = compiled(toy)
    levels = [1 - step / steps for step in range(steps)]
    shifted = [1000 * shift * level / (1 + (shift - 1) * level) for level in levels]
    calls = sampled([toy.inputs(timestep, at) for at, timestep in enumerate(shifted)])
    follow(model, calls)
    report = deltapass.last_report(model)
    assert report is not None
    planned = [entry.realised is not None for entry in report.entries]
    assert planned == [step >= 3 and step % 2 == 1 for step in range(steps)]


@pytest.mark.parametrize("scale", [80.0, 14.6, -1.0])
def test_boundary_is_refused_where_timesteps_tell_no_noise_level(scale: float) -> None:
    """Sigmas, and their logarithms; a schedule without a boundary is followed."""
    sigmas = [(80 ** (1 / 7) - step * (80 ** (1 / 7) - 0.4) / 29) ** 7 for step in range(30)]
    times = [math.log(s) / 4 if scale < 0 else s * scale / 80 for s in sigmas]
    toy = make("adaln")
    calls = sampled([toy.inputs(timestep, at) for at, timestep in enumerate(times)])
    model = compiled(toy, cached_blocks=4)
    with pytest.warns(RefusalWarning, match="tell no noise level"):
        outputs = follow(model, calls)
    assert all(torch.equal(a, b) for a, b in zip(outputs, follow(toy, calls), strict=True))
    torch._dynamo.reset()
    model = compiled(make("adaln"), schedule=Schedule(cached_blocks=4, detail="deep"))
    follow(model, calls)
    report = deltapass.last_report(model)
    assert report is not None
    assert report.cached >= 10
