"""Finding the step from timesteps of every scale and direction models are given."""

from __future__ import annotations

import pytest

from deltapass.selector.timestep import MAX_BRANCHES, Located, TimestepTracker
from deltapass.sessions.log import MAX_ENTRIES
from deltapass.sessions.report import Cause, Entry

SAMPLE = (0.5, -0.5)


def follow(tracker: TimestepTracker, values: list[float]) -> list[Located]:
    # Every step has a sample of its own, as in sampling.
    return [tracker.locate(value, (value, float(at))) for at, value in enumerate(values)]


@pytest.mark.parametrize("scale", [1000.0, 1.0])
def test_falling_timesteps_are_counted_as_steps(scale: float) -> None:
    places = follow(TimestepTracker(), [scale * (1 - step / 20) for step in range(20)])
    assert [place.step for place in places] == list(range(20))
    assert [round(place.level, 6) for place in places] == [round(1 - s / 20, 6) for s in range(20)]
    assert not any(place.problem or place.few_steps or place.branch for place in places)


def test_jump_back_starts_a_new_trajectory() -> None:
    tracker = TimestepTracker()
    follow(tracker, [900.0, 800.0, 700.0])
    state = tracker.lane(0)
    assert tracker.lane(0) is state
    place = tracker.locate(900.0, SAMPLE)
    assert place.step == 0
    assert tracker.lane(0) is not state, "deltas of the aborted trajectory must be gone"


def test_trajectories_are_numbered_and_their_calls_are_remembered_one_by_one() -> None:
    tracker = TimestepTracker()
    follow(tracker, [900.0, 800.0])
    tracker.entries.note_entry(Entry(step=0, planned=None, realised=None))
    assert tracker.trajectory == 0
    tracker.locate(900.0, SAMPLE)
    assert tracker.trajectory == 1
    assert not tracker.entries


def test_calls_of_an_endless_trajectory_are_forgotten() -> None:
    tracker = TimestepTracker()
    for step in range(MAX_ENTRIES + 10):
        tracker.entries.note_entry(Entry(step=step, planned=None, realised=None))
    assert len(tracker.entries) == MAX_ENTRIES
    assert tracker.entries[-1].step == MAX_ENTRIES + 9


def test_new_branches_say_why_they_have_no_delta() -> None:
    tracker = TimestepTracker()
    tracker.locate(900.0, (1.0,))
    first = tracker.lane(0).doubt
    assert first is not None
    assert first.cause is Cause.NEW_TRAJECTORY
    tracker.locate(800.0, (2.0,))
    late = tracker.lane(1).doubt
    assert late is not None
    assert late.cause is Cause.BRANCH
    assert "step 1" in late.reason


def test_loop_on_fixed_inputs_keeps_no_state() -> None:
    tracker = TimestepTracker()
    branches = [tracker.locate(900.0, SAMPLE).branch for _ in range(MAX_BRANCHES)]
    states = [tracker.lane(branch) for branch in branches]
    assert "share one timestep and sample" in tracker.locate(900.0, SAMPLE).problem
    assert all(tracker.lane(at) is not state for at, state in zip(branches, states, strict=True))


def test_same_timestep_and_sample_is_the_next_branch() -> None:
    tracker = TimestepTracker()
    branches = [tracker.locate(t, (t,)).branch for t in (900.0, 900.0, 800.0, 800.0)]
    assert branches == [0, 1, 0, 1]


def test_same_timestep_with_another_sample_is_ambiguous_for_the_whole_trajectory() -> None:
    tracker = TimestepTracker()
    tracker.locate(900.0, (1.0,))
    assert "different samples" in tracker.locate(900.0, (2.0,)).problem
    assert tracker.locate(800.0, (3.0,)).problem
    assert not tracker.locate(900.0, (4.0,)).problem


def test_rising_timesteps_are_recognised_after_two_jumps() -> None:
    tracker = TimestepTracker()
    values = [step / 10 for step in range(10)]
    follow(tracker, values)
    places = follow(tracker, values)
    assert [place.step for place in places] == list(range(10))
    assert places[0].level == 1.0
    assert places[5].level == pytest.approx(0.5)


def test_rising_timesteps_never_place_a_step_too_late_while_unknown() -> None:
    places = follow(TimestepTracker(), [step / 10 for step in range(10)])
    assert [place.step for place in places[:3]] == [0, 0, 0]
    assert [place.step for place in places[3:]] == list(range(1, 8))


def test_trajectory_that_starts_half_way_has_its_own_noise_level() -> None:
    places = follow(TimestepTracker(), [500.0, 450.0])
    assert places[0].step == 0
    assert places[0].level == 0.5


@pytest.mark.parametrize(("values", "few"), [([999.0, 749.0], True), ([999.0, 949.0], False)])
def test_few_step_trajectories_are_noticed_at_the_second_step(
    values: list[float], few: bool
) -> None:
    assert follow(TimestepTracker(), values)[1].few_steps is few
