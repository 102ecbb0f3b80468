"""bench/measuring/turns.py: two runs of which one at a time is under way."""

from __future__ import annotations

import contextvars
import time
from collections.abc import Callable

import pytest
import torch
from torch import nn

from deltapass.bench.measuring.clocks import CallClock, Taken, timed
from deltapass.bench.measuring.turns import StandStill, take_turns


def run(name: str, steps: int, log: list[str]) -> Callable[[StandStill], str]:
    def steps_of(stand_still: StandStill) -> str:
        for _ in range(steps):
            log.append(name)
            stand_still()
        return name

    return steps_of


@pytest.mark.parametrize(
    ("steps", "order"),
    [((4, 4), "abbaabba"), ((4, 2), "abaaba"), ((2, 4), "abbbab"), ((0, 2), "bb"), ((2, 0), "aa")],
)
def test_the_one_that_is_behind_goes_on(steps: tuple[int, int], order: str) -> None:
    log: list[str] = []
    given = take_turns(run("a", steps[0], log), run("b", steps[1], log), steps)
    assert (given, "".join(log)) == (("a", "b"), order)


def test_more_steps_than_were_told_do_not_hang() -> None:
    log: list[str] = []
    take_turns(run("a", 5, log), run("b", 1, log), (2, 3))
    assert sorted(log) == ["a"] * 5 + ["b"]


@pytest.mark.parametrize("failing", [0, 1])
def test_what_one_raises_ends_both_and_is_raised(failing: int) -> None:
    log: list[str] = []

    def fails(stand_still: StandStill) -> None:
        stand_still()
        raise ArithmeticError("at its second step")

    runs = [run("a", 3, log), run("b", 3, log)]
    with pytest.raises(ArithmeticError):
        take_turns(*(fails if n == failing else one for n, one in enumerate(runs)), (3, 3))
    assert len(log) == 3, "the other one was drawn to its end"


def test_both_see_the_context_of_the_caller() -> None:
    setting = contextvars.ContextVar("setting", default="none")
    setting.set("the caller's")
    found = take_turns(lambda _: setting.get(), lambda _: setting.get(), (1, 1))
    assert found == ("the caller's", "the caller's")


class Sleeps(nn.Module):
    """Takes as long as it is told."""

    def forward(self, seconds: float) -> None:
        time.sleep(seconds)


def test_a_clock_counts_its_own_steps_alone_and_not_while_it_stands_still() -> None:
    model, clocks = Sleeps(), dict[float, CallClock]()  # both call this very module

    def sleeper(seconds: float) -> Callable[[StandStill], Taken]:
        def once(clock: CallClock) -> None:
            clocks[seconds] = clock
            with clock.watching([model]):
                for _ in range(4):
                    model(seconds)

        return lambda stand_still: timed(once, torch.device("cpu"), stand_still)

    short, long = take_turns(sleeper(0.001), sleeper(0.1), (4, 4))
    assert [len(clock.seconds()) for clock in clocks.values()] == [4, 4]
    assert short.denoiser <= short.end_to_end < 0.3, "what the other took is not among it"
    assert 0.4 <= long.denoiser <= long.end_to_end
