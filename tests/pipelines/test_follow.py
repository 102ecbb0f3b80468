"""Which step a scheduler took: told by the place in memory of the timestep it was given."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from deltapass.pipelines.follow import Run


class Told:
    """As much of a session as a run drives."""

    def __init__(self) -> None:
        self.steps: int | None = None
        self.fixed, self.told = False, list[int]()

    def follow(self, steps: int | None) -> None:
        self.steps = steps

    def step(self, index: int) -> None:
        self.told.append(index)


def steps_of(timesteps: torch.Tensor, *given: Any, start: int = 0) -> list[int]:
    """The steps a session is told when a scheduler steps these timesteps one after the other."""
    told: Any = Told()
    run = Run(told, SimpleNamespace(timesteps=timesteps))
    run.begin(start)
    for one in given:
        run.stepped((one,))
    return list(told.told)


TWICE = torch.tensor([9.0, 7.0, 7.0, 5.0, 5.0, 3.0])  # as solvers of second order hold them


def test_a_timestep_that_stands_there_twice_is_known_by_its_place() -> None:
    assert steps_of(TWICE, *TWICE) == [0, 1, 2, 3, 4, 5]
    assert steps_of(TWICE, TWICE[2]) == [0, 3]
    assert steps_of(TWICE, TWICE[4]) == [0, 5]


def test_steps_back_and_skipped_steps_are_followed() -> None:
    given = [TWICE[0], TWICE[1], TWICE[0], TWICE[3]]
    assert steps_of(TWICE, *given) == [0, 1, 2, 1, 4]


@pytest.mark.parametrize(
    "timesteps",
    [TWICE[1:], torch.arange(12.0)[::2], torch.arange(6), torch.arange(24.0).view(6, 4)[:, 1]],
)
def test_views_of_any_stride_and_type(timesteps: torch.Tensor) -> None:
    assert steps_of(timesteps, timesteps[3], timesteps[1]) == [0, 4, 2]


@pytest.mark.parametrize(
    "given",
    [
        9.0,
        None,
        TWICE[3].clone(),
        TWICE[3].double(),
        TWICE[3:5],
        TWICE.view(torch.int32)[3],
        TWICE[3].to("meta"),
    ],
)
def test_what_is_no_entry_is_counted(given: Any) -> None:
    assert steps_of(TWICE, given, given, start=1) == [1, 2, 3]


def test_what_lies_between_or_beyond_the_entries_is_counted() -> None:
    memory = torch.arange(12.0)
    evens = memory[:8:2]
    assert steps_of(evens, memory[3]) == [0, 1]
    assert steps_of(evens, memory[8]) == [0, 1]
    assert steps_of(memory[4:], memory[3]) == [0, 1]


def test_after_the_last_step_there_is_none_to_tell() -> None:
    assert steps_of(TWICE, TWICE[5]) == [0]
