"""One trajectory: which branch a call is, and when its deltas are forgotten."""

from __future__ import annotations

import gc
from collections.abc import Hashable

import pytest
import torch

from deltapass.errors import StepUnknownError
from deltapass.schedule.rules import Span
from deltapass.sessions.deltas import Doubt, History, Lane
from deltapass.sessions.report import Cause
from deltapass.sessions.trajectory import MAX_CALLS, NEW, Place, Trajectory

SPAN = Span(2, 6)
FREED = Doubt(Cause.NO_DELTA, "freed")


class Model:
    """Stands for a model, as its first weight does."""


def call(trajectory: Trajectory, model: object, step: int, branch: Hashable = None) -> Place:
    """Tell a step and call the model, which leaves a delta of 16 bytes."""
    place = trajectory.place(trajectory.announce(step, branch), model)
    leave_delta(place.lane, step)
    return place


def leave_delta(state: Lane, step: int) -> None:
    state.doubt = None
    state.histories[SPAN] = History([(torch.zeros(4),)], (step,))


def cause_of(state: Lane) -> Cause | None:
    return state.doubt.cause if state.doubt else None


# ---- where a call belongs ----------------------------------------------------------------------


def test_calls_at_one_step_after_the_other_are_one_branch() -> None:
    trajectory, model = Trajectory(3), Model()
    places = [call(trajectory, model, step) for step in (0, 1, 2)]
    assert [place.step for place in places] == [0, 1, 2]
    assert [place.before for place in places] == [None, 0, 1]
    assert {place.branch for place in places} == {(None, 0)}
    assert {id(place.lane) for place in places} == {id(places[0].lane)}
    assert {(place.trajectory, place.start) for place in places} == {(3, 0)}


def test_first_step_told_is_where_the_trajectory_starts() -> None:
    trajectory, model = Trajectory(0), Model()
    places = [call(trajectory, model, step) for step in (4, 5)]
    assert [place.start for place in places] == [4, 4]
    assert [place.before for place in places] == [None, 4]


def test_calls_under_one_announcement_are_branches_by_their_order() -> None:
    trajectory, model = Trajectory(0), Model()
    seen = []
    for step in (0, 1):
        position = trajectory.announce(step, None)
        seen.append([trajectory.place(position, model) for _ in range(3)])
    assert [place.branch for place in seen[0]] == [(None, 0), (None, 1), (None, 2)]
    assert [place.lane for place in seen[0]] == [place.lane for place in seen[1]]
    assert len({id(place.lane) for place in seen[0]}) == 3


def test_names_and_order_together_tell_branches_apart() -> None:
    trajectory, model = Trajectory(0), Model()
    branches = set()
    for name in ("cond", "uncond", None):
        position = trajectory.announce(0, name)
        branches |= {trajectory.place(position, model).branch for _ in range(2)}
    assert branches == {(name, nth) for name in ("cond", "uncond", None) for nth in (0, 1)}


def test_models_are_counted_and_kept_apart() -> None:
    trajectory, control, denoiser = Trajectory(0), Model(), Model()
    position = trajectory.announce(0, None)
    places = [trajectory.place(position, model) for model in (control, denoiser, control)]
    assert [place.branch for place in places] == [(None, 0), (None, 0), (None, 1)]
    assert places[0].lane is not places[1].lane


def test_named_branch_that_goes_on_counts_its_further_calls() -> None:
    trajectory, model = Trajectory(0), Model()
    first = trajectory.announce(0, "cond", again=True)
    trajectory.place(first, model)
    again = trajectory.announce(0, "cond", again=True)
    place = trajectory.place(again, model)
    assert place.branch == ("cond", 1)
    later = trajectory.announce(1, "cond", again=True)
    assert trajectory.place(later, model).branch == ("cond", 0)


# ---- why a branch has no delta yet -------------------------------------------------------------


@pytest.mark.parametrize("origin", [NEW, Doubt(Cause.BACK, "went back from step 3 to 1")])
def test_first_calls_say_why_the_trajectory_began(origin: Doubt) -> None:
    trajectory = Trajectory(1, origin)
    position = trajectory.announce(1, None)
    states = [trajectory.place(position, model).lane for model in (Model(), Model())]
    assert [state.doubt for state in states] == [origin, origin]


def test_branch_that_comes_later_says_so() -> None:
    trajectory, model = Trajectory(0), Model()
    call(trajectory, model, 0, "cond")
    state = trajectory.place(trajectory.announce(2, "uncond"), model).lane
    assert state.doubt == Doubt(Cause.BRANCH, "this branch is first called at step 2")


# ---- a step told twice -------------------------------------------------------------------------


def test_step_told_twice_without_a_call_in_between_is_told_once() -> None:
    trajectory, model = Trajectory(0), Model()
    call(trajectory, model, 0)
    trajectory.announce(1, None)
    place = trajectory.place(trajectory.announce(1, None), model)
    assert place.branch == (None, 0)
    assert place.lane.doubt is None
    assert place.lane.nbytes == 16


def test_step_told_twice_with_a_call_in_between_drops_its_deltas_now_and_at_the_next_step() -> None:
    trajectory, model = Trajectory(0), Model()
    call(trajectory, model, 0)
    call(trajectory, model, 1)
    state = trajectory.place(trajectory.announce(1, None), model).lane
    assert cause_of(state) is Cause.REPEATED
    assert state.nbytes == 0
    leave_delta(state, 1)  # whose is it?
    assert cause_of(trajectory.place(trajectory.announce(2, None), model).lane) is Cause.REPEATED
    assert state.nbytes == 0
    leave_delta(state, 2)
    assert cause_of(trajectory.place(trajectory.announce(3, None), model).lane) is None
    assert state.nbytes == 16


def test_only_the_name_that_was_told_twice_is_in_doubt() -> None:
    trajectory, model = Trajectory(0), Model()
    for branch in ("cond", "uncond"):
        call(trajectory, model, 0, branch)
    for branch in ("cond", "uncond", "cond"):
        place = call(trajectory, model, 1, branch)
    assert place.branch == ("cond", 0)
    states = {
        name: trajectory.place(trajectory.announce(2, name), model).lane
        for name in ("cond", "uncond")
    }
    assert cause_of(states["cond"]) is Cause.REPEATED
    assert cause_of(states["uncond"]) is None
    assert (states["cond"].nbytes, states["uncond"].nbytes) == (0, 16)


def test_names_in_turn_are_never_a_repetition() -> None:
    trajectory, model = Trajectory(0), Model()
    for step in range(4):
        for branch in ("cond", "uncond"):
            place = trajectory.place(trajectory.announce(step, branch), model)
            assert cause_of(place.lane) in (NEW.cause, None)
            leave_delta(place.lane, step)


def test_late_call_at_an_earlier_step_is_in_doubt_and_the_next_one_too() -> None:
    trajectory, model = Trajectory(0), Model()
    call(trajectory, model, 0)
    early = trajectory.announce(1, None)
    call(trajectory, model, 2)
    late = trajectory.place(early, model)
    assert late.step == 1
    assert cause_of(late.lane) is Cause.REPEATED
    leave_delta(late.lane, 1)
    assert cause_of(trajectory.place(trajectory.announce(3, None), model).lane) is Cause.REPEATED


def test_two_announcements_of_one_step_that_are_both_called_are_in_doubt() -> None:
    trajectory, model = Trajectory(0), Model()
    for step in (0, 1, 2):
        mine, other = trajectory.announce(step, None), trajectory.announce(step, None)
        first = trajectory.place(mine, model)
        leave_delta(first.lane, step)
        second = trajectory.place(other, model)
        shared = second.lane is first.lane
        assert not shared or cause_of(second.lane) is Cause.REPEATED
        leave_delta(second.lane, step)
        if step:
            assert not shared or first.lane.histories[SPAN].at == (step,)
    last = trajectory.place(trajectory.announce(3, None), model)
    assert last.lane is not first.lane or cause_of(last.lane) is Cause.REPEATED


def test_telling_the_step_before_each_of_two_models_is_no_repetition() -> None:
    trajectory, models = Trajectory(0), (Model(), Model())
    for step in (0, 1, 2):
        for model in models:
            place = trajectory.place(trajectory.announce(step, None), model)
            assert cause_of(place.lane) in (NEW.cause, None)
            assert place.branch == (None, 0)
            leave_delta(place.lane, step)


def test_too_many_calls_at_one_step_are_refused_and_keep_nothing() -> None:
    trajectory, model = Trajectory(0), Model()
    position = trajectory.announce(0, None)
    for _ in range(MAX_CALLS):
        leave_delta(trajectory.place(position, model).lane, 0)
    for _ in range(3):
        with pytest.raises(StepUnknownError, match=f"{MAX_CALLS} calls of one model"):
            trajectory.place(position, model)
    assert not any(state.nbytes for state in trajectory.lanes)
    assert trajectory.place(trajectory.announce(1, None), model).branch == (None, 0)


# ---- forgetting --------------------------------------------------------------------------------


def test_all_states_are_listed_and_dropped_together() -> None:
    trajectory, models = Trajectory(0), (Model(), Model())
    for branch in ("cond", "uncond"):
        position = trajectory.announce(0, branch)
        for model in models:
            leave_delta(trajectory.place(position, model).lane, 0)
    states = list(trajectory.lanes)
    assert len(states) == 4
    trajectory.drop(FREED)
    assert [state.doubt for state in states] == [FREED] * 4
    assert sum(state.nbytes for state in states) == 0


def test_states_of_a_model_that_is_gone_are_freed() -> None:
    trajectory, model = Trajectory(0), Model()
    call(trajectory, model, 0)
    assert len(list(trajectory.lanes)) == 1
    del model
    gc.collect()
    assert not list(trajectory.lanes)


def test_trajectory_knows_whether_a_model_was_called() -> None:
    trajectory = Trajectory(0)
    position = trajectory.announce(0, None)
    assert not trajectory.placed
    trajectory.place(position, Model())
    assert trajectory.placed
