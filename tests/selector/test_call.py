"""What is planned for a call, with a session and by noise level."""

from __future__ import annotations

import pytest
import torch
from driving import compiled, follow
from models import make

import deltapass
from deltapass.assembly import model_info
from deltapass.backend import analyse
from deltapass.compiler.lowering import LoweredBodies, load_lowering
from deltapass.compiler.plan import make_plan
from deltapass.compiler.tracing import trace
from deltapass.compiler.variants import Variants
from deltapass.errors import RefusalWarning, StepUnknownError
from deltapass.schedule.rules import AnySchedule, Schedule, Span
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
        variants = Variants(outline=outlined, order=plan.order, bodies=bodies)
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


def test_few_step_trajectories_of_unknown_length_run_in_full_and_say_so() -> None:
    toy = make("adaln")
    model = compiled(toy)
    calls = [toy.inputs(timestep, at) for at, timestep in enumerate((999.0, 749.0, 499.0, 249.0))]
    with pytest.warns(RefusalWarning, match="few-step"):
        outputs = follow(model, calls)
    assert all(torch.equal(a, b) for a, b in zip(outputs, follow(toy, calls), strict=True))
