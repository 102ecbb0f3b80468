"""Measured time: whole batches of images, every method in every round, in one process."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from evidence.methods import Method, plain
from evidence.samples import FIRST_SEED, Sampler

AGAIN = "plain, again"


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


def measure(
    sampler: Sampler,
    methods: Sequence[Method],
    *,
    count: int,
    rounds: int,
    say: Callable[[str], Any] = print,
) -> dict[str, Times]:
    """Seconds by the method's name; the full plain run, which is the first, stands there twice.

    What is between its two is what the machine alone makes of one method.
    """
    seeds = range(FIRST_SEED, FIRST_SEED + count)
    timed = (*methods, plain(methods[0].steps, AGAIN))
    for method in timed[:-1]:
        started = time.perf_counter()
        sampler.draw(method, seeds)
        say(f"warmed up {method.name}: {time.perf_counter() - started:.1f} s")
    taken: dict[str, list[tuple[float, float]]] = {method.name: [] for method in timed}
    for turn in range(rounds):
        # Who goes first changes, and so does who follows whom.
        place = turn * len(timed) // rounds
        order = (*timed[place:], *timed[:place])
        for method in order if turn % 2 == 0 else reversed(order):
            taken[method.name].append(_seconds(lambda one=method: sampler.draw(one, seeds)))
        say(f"round {turn + 1} of {rounds}")
    return {name: Times(*map(tuple, zip(*pairs, strict=True))) for name, pairs in taken.items()}


def share(times: Times, reference: Times, clock: str = "wall") -> Share:
    """A method's time over the reference's, round by round."""
    pairs = zip(getattr(times, clock), getattr(reference, clock), strict=True)
    ratios = [ours / theirs for ours, theirs in pairs]
    return Share(statistics.median(ratios), min(ratios), max(ratios))


def _seconds(run: Callable[[], Any]) -> tuple[float, float]:
    wall, worked = time.perf_counter(), time.thread_time()
    run()
    return time.perf_counter() - wall, time.thread_time() - worked
