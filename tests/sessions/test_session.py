"""Sessions: what they are told, where they are active, and when they begin anew."""

from __future__ import annotations

import contextvars
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from driving import compiled, follow, oracle, tensors
from models import make
from reference import Call

import deltapass
from deltapass.errors import NoStepError, StateError, StepOutsideError
from deltapass.schedule.rules import Span
from deltapass.sessions.report import Cause, Entry
from deltapass.sessions.session import Session, active_session

pytestmark = pytest.mark.keeps_compiled

STEPS = 6
SCHEDULE = {"cached_blocks": 2, "boundary": 0.5}
DEEP, SHALLOW = Span(2, 4), Span(0, 2)
TABLE = (None, DEEP, None, SHALLOW, None, SHALLOW)  # of 6 steps and 4 blocks


class Model:
    """Stands for a model, as its first weight does."""


def place(session: Session, step: int, branch: Any = None, model: object = None) -> Any:
    """Tell a step and call a model at it."""
    session.step(step, branch=branch)
    return session.place(model or MODEL)


MODEL = Model()


# ---- how it is opened --------------------------------------------------------------------------


@pytest.mark.parametrize("steps", [0, -3, 2.5, True, "4"])
def test_session_needs_a_number_of_steps(steps: Any) -> None:
    with pytest.raises(StateError, match="1 or more"):
        deltapass.session(steps=steps)


@pytest.mark.parametrize("timesteps", [torch.arange(3), [999, 500, 1], range(3)])
def test_timesteps_are_counted_and_not_read(timesteps: Any) -> None:
    assert deltapass.session(timesteps=timesteps).steps == 3
    assert deltapass.session(steps=3, timesteps=timesteps).steps == 3
    with pytest.raises(StateError, match="4 steps with 3 timesteps"):
        deltapass.session(steps=4, timesteps=timesteps)


def test_no_timesteps_are_no_trajectory() -> None:
    with pytest.raises(StateError, match="1 or more"):
        deltapass.session(timesteps=[])


def test_steps_of_a_session_without_a_number_of_steps_are_an_error() -> None:
    session = deltapass.session()
    assert session.steps is None
    with session, pytest.raises(StateError, match=r"Give steps= or timesteps="):
        session.step(0)
    with pytest.raises(StateError, match=r"Give steps= or timesteps="), session.at(0):
        pytest.fail("entered")
    assert active_session() is None


# ---- what it is told ---------------------------------------------------------------------------


def test_sessions_nest_and_the_inner_one_is_active() -> None:
    assert active_session() is None
    with deltapass.session(steps=2) as outer:
        with deltapass.session(steps=3) as inner:
            assert active_session() is inner
        assert active_session() is outer
    assert active_session() is None


def test_call_before_the_first_step_is_an_error() -> None:
    with deltapass.session(steps=2) as session, pytest.raises(NoStepError, match=r"session\.step"):
        session.place(Model())


@pytest.mark.parametrize(
    ("index", "match"),
    [
        *((-1, "0 to 3"), (4, "0 to 3")),
        *((True, "whole number"), (1.5, "whole number"), ("1", "whole number")),
    ],
)
def test_step_outside_the_session_is_an_error(index: Any, match: str) -> None:
    kind = StepOutsideError if match == "0 to 3" else StateError
    with deltapass.session(steps=4) as session:
        with pytest.raises(kind, match=match):
            session.step(index)
        with pytest.raises(kind, match=match), session.at(index):
            pytest.fail("entered")
    assert not session.active


@pytest.mark.parametrize("index", [np.int64(2), torch.tensor(2)])
def test_step_may_be_any_kind_of_whole_number(index: Any) -> None:
    with deltapass.session(steps=4) as session:
        step = place(session, index).step
    assert (step, type(step)) == (2, int)


def test_step_of_a_session_that_is_not_entered_is_an_error() -> None:
    session = deltapass.session(steps=4)
    with pytest.raises(StateError, match=r"not active.*session\.at"):
        session.step(1)


def test_step_that_was_refused_changes_nothing() -> None:
    session = deltapass.session(steps=4)
    with pytest.raises(StateError):
        session.step(0)
    with session:
        assert place(session, 2).start == 2
        with pytest.raises(StateError):
            contextvars.Context().run(session.step, 0)
        assert session.place(MODEL).trajectory == 0


def test_leaving_at_goes_back_to_where_the_session_stood() -> None:
    with deltapass.session(steps=4) as session:
        session.step(1)
        with session.at(2, branch="cond"):
            assert session.place(MODEL).step == 2
        assert (session.place(MODEL).step, session.active) == (1, True)
    with session.at(3) as same:
        assert same is session is active_session()
    assert not session.active


# ---- trajectories ------------------------------------------------------------------------------


def test_going_back_is_a_new_trajectory_with_states_of_its_own() -> None:
    with deltapass.session(steps=4) as session:
        first = [place(session, step) for step in (0, 1, 2)]
        back = place(session, 1)
        again = place(session, 0)
    assert [p.trajectory for p in (*first, back, again)] == [0, 0, 0, 1, 2]
    assert len({id(p.lane) for p in (first[0], back, again)}) == 3
    assert back.lane.doubt == (Cause.BACK, "went back from step 2 to 1")
    assert back.start == 1
    assert again.start == 0


@pytest.mark.parametrize("start", [0, 2])
def test_going_back_to_the_start_is_simply_a_new_trajectory(start: int) -> None:
    with deltapass.session(steps=4) as session:
        place(session, start)
        place(session, start + 1)
        assert place(session, start).lane.doubt.cause is Cause.NEW_TRAJECTORY


def test_restarting_begins_anew_with_another_number_of_steps() -> None:
    with deltapass.session(steps=4) as session:
        before = place(session, 3)
        session.restart(6)
        with pytest.raises(NoStepError):
            session.place(MODEL)
        after = place(session, 5)
    assert (before.trajectory, after.trajectory) == (0, 1)
    assert after.lane.doubt.cause is Cause.NEW_TRAJECTORY
    assert after.start == 5
    session.restart()
    assert session.steps == 6
    with pytest.raises(StateError, match="1 or more"):
        session.restart(0)


def test_session_entered_again_waits_for_its_first_step() -> None:
    session = deltapass.session(steps=4)
    with session:
        place(session, 0)
    with session:
        with pytest.raises(NoStepError):
            session.place(MODEL)
        assert place(session, 0).trajectory == 1


def test_session_entered_twice_goes_on_until_it_is_left_twice() -> None:
    session = deltapass.session(steps=4)
    with session:
        first = place(session, 0)
        with session:
            pass
        assert place(session, 1).lane is first.lane
    assert not session.active


# ---- a failed call -----------------------------------------------------------------------------


def test_second_try_that_tells_the_step_again_is_no_step_told_twice() -> None:
    session = deltapass.session(steps=4)
    with session.at(1):
        session.place(MODEL)
        session.take_back(MODEL)
    with session.at(1):
        again = session.place(MODEL)
        again.lane.doubt = None  # as the call leaves it
    assert again.branch == (None, 0)
    with session.at(2):
        assert session.place(MODEL).lane.doubt is None


def test_second_try_of_a_failed_call_is_no_other_branch() -> None:
    with deltapass.session(steps=4) as session:
        session.step(0)
        first, _ = session.place(MODEL), session.place(MODEL)
        session.take_back(MODEL)
        assert session.place(MODEL).branch == (None, 1)
        session.take_back(MODEL)
        session.take_back(MODEL)
        session.take_back(MODEL)  # once too often is no harm
        assert session.place(MODEL).lane is first.lane


# ---- with a model ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def toy() -> Any:
    return make("adaln", depth=4)


@pytest.fixture
def model(toy: Any) -> Callable[..., Any]:
    return compiled(toy, **SCHEDULE)


def calls_of(toy: Any, shift: int = 0) -> list[Call]:
    return [toy.inputs(999.0 * (1 - step / STEPS), step + shift) for step in range(STEPS)]


@torch.no_grad()
def run(model: Callable[..., Any], call: Call) -> Any:
    return model(*call[0], **call[1])


@pytest.mark.parametrize("start", range(STEPS))
def test_trajectory_that_starts_half_way_has_the_schedule_counted_from_there(
    toy: Any, model: Any, start: int
) -> None:
    calls, outputs = calls_of(toy), []
    table = deltapass.Schedule(cached_blocks=2, boundary=0.5).table(STEPS, 4, start)
    with deltapass.session(steps=STEPS) as session:
        for step in range(start, STEPS):
            session.step(step)
            outputs.append(run(model, calls[step]))
    assert tuple(entry.realised for entry in session.entries) == table[start:]
    assert table[start] is None
    assert session.entries[0].cause is Cause.NEW_TRAJECTORY
    assert all(map(torch.equal, outputs, tensors(oracle(toy, table[start:], calls[start:]))))


def test_continuous_batching_frees_nothing_between_steps(toy: Any, model: Any) -> None:
    requests = [(deltapass.session(steps=STEPS), calls_of(toy, 100 * at), []) for at in range(3)]
    for tick in range(STEPS + 2):  # requests join one after another
        for joined, (session, calls, outputs) in enumerate(requests):
            if 0 <= (step := tick - joined) < STEPS:
                with session.at(step):
                    outputs.append(run(model, calls[step]))
        assert active_session() is None
    for session, calls, outputs in requests:
        assert session.report().as_planned
        assert all(map(torch.equal, outputs, tensors(oracle(toy, TABLE, calls))))


def test_schedule_given_in_mid_trajectory_begins_with_a_refresh(toy: Any, model: Any) -> None:
    calls, middle = calls_of(toy), Span(1, 3)
    with deltapass.session(steps=STEPS) as session:
        follow(model, calls[:3], session)
        session.schedule = deltapass.ExplicitSchedule((None, *[middle] * 5))
        assert session.nbytes == 0
        for step in (3, 4):
            session.step(step)
            run(model, calls[step])
    last = session.entries[-2:]
    assert [(e.planned, e.realised) for e in last] == [(middle, None), (middle, middle)]
    assert [e.cause for e in last] == [Cause.SCHEDULE, None]


def test_report_locates_a_refused_call() -> None:
    refused = Entry(step=None, planned=None, realised=None, cause=Cause.REFUSED)
    with deltapass.session(steps=4) as session:
        assert session.located(refused).step is None
        session.step(2, branch="cond")
        located = session.located(refused)
    assert (located.step, located.branch, located.refused) == (2, "cond", True)
