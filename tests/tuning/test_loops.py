from __future__ import annotations

from typing import Any

import pytest
import torch
from own_loop import toy_loop

from deltapass.errors import LoopError
from deltapass.schedule.rules import Schedule
from deltapass.tuning.loops import open_loop

STEPS = 4
CACHING = Schedule(cached_blocks=2, boundary=0.5)


def test_a_function_runs_under_any_schedule_with_one_compile() -> None:
    torch._dynamo.utils.counters.clear()
    with open_loop(toy_loop(), steps=STEPS) as loop:
        plain = loop.run([1, 2])
        cached = loop.run([1, 2], CACHING)
        again = loop.run([1, 2])
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1
    assert plain.report.cached == 0 and plain.steps == STEPS
    assert cached.report.cached == 2 and cached.report.forced == 0
    assert torch.equal(plain.samples, again.samples)
    assert not torch.equal(plain.samples, cached.samples)


def test_a_seed_gives_the_same_sample_whatever_its_neighbours() -> None:
    with open_loop(toy_loop(), steps=STEPS) as loop:
        both, turned = loop.run([3, 4]), loop.run([4, 3])
    assert torch.allclose(both.samples[0], turned.samples[1], atol=1e-6)
    assert not torch.allclose(both.samples[0], both.samples[1], atol=1e-2)


def test_a_function_is_told_other_steps() -> None:
    told: list[int] = []
    with open_loop(toy_loop(told), steps=STEPS) as loop:
        assert loop.run([1]).steps == STEPS
        assert loop.run([1], steps=3).steps == 3
    assert told == [STEPS, 3]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (lambda seeds, session: [1.0], "the loop gave a list"),
        (lambda seeds, session: torch.ones(3, 2), r"\(3, 2\) for 2 seeds"),
    ],
)
@pytest.mark.filterwarnings("ignore:nothing cached")
def test_what_is_no_sample_a_seed_is_an_error(given: Any, message: str) -> None:
    with open_loop(given, steps=STEPS) as loop, pytest.raises(LoopError, match=message):
        loop.run([1, 2])


@pytest.mark.parametrize("given", [3, torch.nn.Linear(2, 2), torch.nn.Linear])
def test_what_gives_no_trajectories_is_an_error(given: Any) -> None:
    with pytest.raises(LoopError, match="no trajectories in"), open_loop(given):
        pass


def test_a_function_takes_no_call_and_no_options() -> None:
    with pytest.raises(LoopError, match="call was given"), open_loop(toy_loop(), call={"a": 1}):
        pass
