"""Measured time: whole batches of images, every method in every round, in one process."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from evidence.methods import Method, plain
from evidence.samples import FIRST_SEED, Sampler

AGAIN: Final = "plain, again"
SHIFT: Final = 5  # methods by which a round begins later than the one before
Round = Mapping[str, Sequence[float]]  # wall and processor seconds by the method's name


@dataclass(frozen=True, slots=True)
class Times:
    """Seconds of a batch in every round; `processor` is what this thread worked of them."""

    wall: tuple[float, ...]
    processor: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Share:
    """Time over that of the full plain run of the same round: the median, and the rounds' span."""

    median: float
    low: float
    high: float


def rounds(
    sampler: Sampler, methods: Sequence[Method], *, count: int, turns: Iterable[int]
) -> Iterator[Round]:
    """Every method once a round, warm; the full plain run, which is the first, stands there twice.

    What is between its two is what the machine alone makes of one method.

    Args:
        sampler: What draws.
        methods: The full plain run first.
        count: Images of a batch.
        turns: Numbers of the rounds: each has an order of its own.
    """
    seeds = range(FIRST_SEED, FIRST_SEED + count)
    timed = (*methods, plain(methods[0].steps, AGAIN))
    for method in methods:
        sampler.draw(method, seeds)
    for turn in turns:
        # Who goes first changes, and so does who follows whom.
        place = turn * SHIFT % len(timed)
        order = (*timed[place:], *timed[:place])
        yield {
            method.name: _seconds(lambda one=method: sampler.draw(one, seeds))
            for method in (order if turn % 2 == 0 else reversed(order))
        }


def times_of(kept: Sequence[Round]) -> dict[str, Times]:
    """Seconds by the method's name, of all rounds."""
    names = kept[0] if kept else ()
    return {
        name: Times(*zip(*(each[name] for each in kept), strict=True))  # type: ignore[arg-type]
        for name in names
    }


def share(times: Times, reference: Times, clock: str = "wall") -> Share:
    """A method's time over the reference's, round by round."""
    pairs = zip(getattr(times, clock), getattr(reference, clock), strict=True)
    ratios = [ours / theirs for ours, theirs in pairs]
    return Share(statistics.median(ratios), min(ratios), max(ratios))


def _seconds(run: Callable[[], Any]) -> tuple[float, float]:
    wall, worked = time.perf_counter(), time.thread_time()
    run()
    return time.perf_counter() - wall, time.thread_time() - worked
