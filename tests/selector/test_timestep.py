"""Finding the step from timesteps of every scale and direction, and from the sample."""

from __future__ import annotations

import pytest
import torch

from deltapass.selector.pattern import Length
from deltapass.selector.timestep import MAX_BRANCHES, Located, TimestepTracker
from deltapass.sessions.log import MAX_ENTRIES
from deltapass.sessions.report import Cause, Entry

NOISE = torch.randn(8, 64, generator=torch.Generator().manual_seed(1))


def call(tracker: TimestepTracker, value: float, sample: torch.Tensor) -> Located:
    products = tracker.continuity.look(sample).tolist()
    return tracker.locate(value, products)


def follow(tracker: TimestepTracker, values: list[float], which: int = 0) -> list[Located]:
    """One trajectory: its sample shrinks from step to step."""
    samples = (NOISE[which] * 0.97**at for at in range(len(values)))
    return [call(tracker, value, sample) for value, sample in zip(values, samples, strict=True)]


def even(steps: int, scale: float = 1000.0) -> list[float]:
    return [scale * (1 - step / steps) for step in range(steps)]


@pytest.mark.parametrize("scale", [1000.0, 1.0])
def test_falling_timesteps_are_counted_as_steps(scale: float) -> None:
    places = follow(TimestepTracker(), even(20, scale))
    assert [place.step for place in places] == list(range(20))
    levels = [place.level for place in places if place.level is not None]
    assert levels == pytest.approx(even(20, 1.0))
    assert [place.sure for place in places] == [step >= 3 for step in range(20)]
    assert all(place.length is Length.MANY for place in places[3:])
    assert not any(place.problem or place.branch for place in places)


def test_rising_timesteps_are_recognised_by_the_sample() -> None:
    values = [step / 10 for step in range(10)]
    places = follow(TimestepTracker(), values)
    assert [place.step for place in places] == list(range(10))
    assert places[5].level == pytest.approx(0.5)
    assert places[3].sure


def test_rising_thousands_have_a_level_once_they_cannot_be_sigmas() -> None:
    places = follow(TimestepTracker(), [100.0 * step for step in range(10)])
    assert places[1].level is None
    assert places[5].level == pytest.approx(0.5)


# ---- what is no next step ------------------------------------------------------------------------


def test_jump_back_starts_a_new_trajectory() -> None:
    tracker = TimestepTracker()
    follow(tracker, [900.0, 800.0, 700.0])
    state = tracker.lane(0)
    assert tracker.lane(0) is state
    place = call(tracker, 800.0, NOISE[0] * 0.9)
    assert place.step == 0
    assert tracker.lane(0) is not state, "deltas of the aborted trajectory must be gone"


@pytest.mark.parametrize("value", [700.0, 600.0, 650.0, 300.0])
def test_another_sample_starts_a_new_trajectory_whatever_its_timestep(value: float) -> None:
    tracker = TimestepTracker()
    follow(tracker, [1000.0, 900.0, 800.0, 700.0])
    assert call(tracker, value, NOISE[1]).step == 0
    assert tracker.trajectory == 1


def test_a_sample_that_stands_still_is_no_step() -> None:
    tracker = TimestepTracker()
    assert [call(tracker, value, NOISE[0]).step for value in (900.0, 800.0, 700.0)] == [0, 0, 0]


@pytest.mark.parametrize(("value", "step"), [(620.0, 4), (540.0, 4), (480.0, 0), (300.0, 0)])
def test_a_leap_starts_a_new_trajectory_even_if_the_sample_follows(value: float, step: int) -> None:
    """Four times the gap before, and more than 80 of 1000."""
    tracker = TimestepTracker()
    follow(tracker, [800.0, 760.0, 720.0, 680.0])
    assert call(tracker, value, NOISE[0] * 0.9).step == step


def test_small_leaps_are_steps() -> None:
    tracker = TimestepTracker()
    follow(tracker, [1000.0, 999.0, 998.0, 997.0])
    assert call(tracker, 930.0, NOISE[0] * 0.9).step == 4


def test_random_gaps_are_never_sure() -> None:
    values = [980.0, 975.0, 800.0, 790.0, 540.0, 530.0, 200.0, 130.0]
    assert not any(place.sure for place in follow(TimestepTracker(), values))


def test_steps_that_share_a_rounded_timestep_are_steps() -> None:
    """As in bfloat16, whose neighbours near 1000 are 4 apart."""
    exact = [1000.0 * 9 * (1 - k / 50) / (1 + 8 * (1 - k / 50)) for k in range(50)]
    values = torch.tensor(exact, dtype=torch.bfloat16).tolist()
    assert len(set(values)) < 48
    tracker = TimestepTracker()
    samples = (NOISE[0] * 0.99**at for at in range(50))
    places = []
    for value, sample in zip(values, samples, strict=True):
        products = tracker.continuity.look(sample).tolist()
        places.append(tracker.locate(value, products, torch.finfo(torch.bfloat16).eps))
    assert [place.step for place in places] == list(range(50))
    assert all(place.sure and place.length is Length.MANY for place in places[9:])


# ---- scales --------------------------------------------------------------------------------------


@pytest.mark.parametrize("first", [80.0, 14.6, 157.0, 1.1])
def test_first_timesteps_that_may_be_sigmas_have_no_level(first: float) -> None:
    places = follow(TimestepTracker(), [first * 0.9**step for step in range(6)])
    assert [place.step for place in places] == list(range(6))
    assert all(place.level is None for place in places)


def test_low_timesteps_have_a_level_once_a_whole_trajectory_was_seen() -> None:
    tracker = TimestepTracker()
    follow(tracker, even(20))
    assert call(tracker, 150.0, NOISE[1]).level == pytest.approx(0.15)


def test_logarithms_of_sigmas_are_known_by_their_sign_and_remembered() -> None:
    tracker, values = TimestepTracker(), [0.6, 0.4, 0.2, 0.0, -0.2]
    assert follow(tracker, values)[-1].level is None
    assert all(place.level is None for place in follow(tracker, values, 1))


def test_trajectory_that_starts_half_way_has_its_own_noise_level() -> None:
    places = follow(TimestepTracker(), [500.0, 450.0])
    assert places[0].step == 0
    assert places[0].level == 0.5


# ---- branches ------------------------------------------------------------------------------------


def test_same_timestep_and_sample_is_the_next_branch() -> None:
    tracker = TimestepTracker()
    calls = [(900.0, 1.0), (900.0, 1.0), (800.0, 0.9), (800.0, 0.9)]
    places = [call(tracker, value, NOISE[0] * size) for value, size in calls]
    assert [(place.step, place.branch) for place in places] == [(0, 0), (0, 1), (1, 0), (1, 1)]


def test_new_branches_say_why_they_have_no_delta() -> None:
    tracker = TimestepTracker()
    follow(tracker, [900.0])
    first = tracker.lane(0).doubt
    assert first is not None
    assert first.cause is Cause.NEW_TRAJECTORY
    call(tracker, 800.0, NOISE[0] * 0.97)
    late = tracker.lane(1).doubt
    assert late is not None
    assert late.cause is Cause.BRANCH
    assert "step 1" in late.reason


def test_loop_on_fixed_inputs_keeps_no_state() -> None:
    tracker = TimestepTracker()
    branches = [call(tracker, 900.0, NOISE[0]).branch for _ in range(MAX_BRANCHES)]
    states = [tracker.lane(branch) for branch in branches]
    assert "share one timestep and sample" in call(tracker, 900.0, NOISE[0]).problem
    assert all(tracker.lane(at) is not state for at, state in zip(branches, states, strict=True))


# ---- the record ----------------------------------------------------------------------------------


def test_trajectories_are_numbered_and_their_calls_are_remembered_one_by_one() -> None:
    tracker = TimestepTracker()
    follow(tracker, [900.0, 800.0])
    tracker.entries.note_entry(Entry(step=0, planned=None, realised=None))
    assert tracker.trajectory == 0
    call(tracker, 900.0, NOISE[1])
    assert tracker.trajectory == 1
    assert not tracker.entries


def test_trajectories_that_were_never_sure_are_counted() -> None:
    tracker = TimestepTracker()
    for which in range(3):
        call(tracker, 900.0, NOISE[which])
        call(tracker, 900.0, NOISE[which])
    assert tracker.starts == 3
    follow(tracker, [900.0, 800.0, 700.0])
    assert tracker.starts == 4
    call(tracker, 600.0, NOISE[0] * 0.9)
    assert tracker.starts == 0


def test_calls_of_an_endless_trajectory_are_forgotten() -> None:
    tracker = TimestepTracker()
    for step in range(MAX_ENTRIES + 10):
        tracker.entries.note_entry(Entry(step=step, planned=None, realised=None))
    assert len(tracker.entries) == MAX_ENTRIES
    assert tracker.entries[-1].step == MAX_ENTRIES + 9
