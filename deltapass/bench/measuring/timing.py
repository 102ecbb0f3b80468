"""Measured time: whole batches of images, every method in every round, warm, in one process.

On a CPU each batch takes turns with one of the reference, step by step (`turns.py`), and what
counts is the ratio of the two. A GPU's speed is steady, and waiting for it at every step would
change it: there the reference is timed twice a round.
"""

from __future__ import annotations

import functools
import statistics
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Final

from deltapass.bench.measuring.clocks import CallClock, Taken, timed
from deltapass.bench.measuring.stability import stability_of
from deltapass.bench.measuring.turns import StandStill, take_turns
from deltapass.bench.methods.method import Method
from deltapass.bench.record import Times, Timing
from deltapass.bench.sampling import Sampler

AGAIN: Final = "again"  # the reference a second time: what the machine alone makes of one method
SHIFT: Final = 5  # methods by which a round begins later than the one before
CLOCKS: Final = ("end_to_end", "denoiser", "step")
Round = Mapping[str, Taken]  # by the method's name


def rounds(
    sampler: Sampler, methods: Sequence[Method], seeds: Sequence[int], turns: Iterable[int]
) -> Iterator[Round]:
    """Every method once a round, and what the reference took beside it (`beside`).

    All are warm: each has drawn the batch before. Rivals are warmed last, for some change settings
    of torch.compile while they are enabled.

    Args:
        sampler: What draws.
        methods: The reference first.
        seeds: Of the batch.
        turns: Numbers of the rounds: each has an order of its own.
    """
    reference, twin = methods[0], sampler.twin()
    steps = {}
    for method in sorted(methods, key=lambda one: one.kind == "rival"):
        clock = CallClock(sampler.subject.device)
        sampler.draw(method, seeds, clock=clock)
        steps[method.name] = len(clock.seconds())
    named = [(method.name, method) for method in methods] + [(AGAIN, reference)]
    for turn in turns:
        # Who goes first changes, and so does who follows whom.
        place = turn * SHIFT % len(named)
        order = [*named[place:], *named[:place]]
        taken: dict[str, Taken] = {}
        for name, method in order if turn % 2 == 0 else reversed(order):
            if sampler.subject.device.type != "cpu":
                taken[name] = take(sampler, method, seeds)
            elif name != reference.name:  # that one is timed against itself
                pair = (twin, reference), (sampler, method)
                counts = steps[reference.name], steps[method.name]
                taken[beside(name)], taken[name] = _in_turn(pair, counts, seeds, turn)
        taken.setdefault(reference.name, taken[beside(AGAIN)])
        yield taken


def beside(name: str) -> str:
    """Under which name a round holds what the reference took beside a method."""
    return f"beside {name}"


def take(
    sampler: Sampler,
    method: Method,
    seeds: Sequence[int],
    stand_still: StandStill | None = None,
) -> Taken:
    """Times of one batch."""
    draw = functools.partial(sampler.draw, method, seeds)
    return timed(lambda clock: draw(clock=clock), sampler.subject.device, stand_still)


def _in_turn(
    pair: Sequence[tuple[Sampler, Method]], steps: tuple[int, int], seeds: Sequence[int], turn: int
) -> tuple[Taken, Taken]:
    """Times of two batches that take turns; who begins changes from round to round."""
    runs = [functools.partial(take, sampler, method, seeds) for sampler, method in pair]
    if turn % 2 == 0:
        one, other = take_turns(runs[0], runs[1], steps)
        return one, other
    other, one = take_turns(runs[1], runs[0], (steps[1], steps[0]))
    return one, other


def times_of(name: str, reference: str, taken: Sequence[Round]) -> Times | None:
    """A method's times over all rounds that have it; None where there are none."""
    of = [each for each in taken if name in each]
    if not of:
        return None
    return Times(**{clock: _timing(clock, name, reference, of) for clock in CLOCKS})


def _timing(clock: str, name: str, reference: str, taken: Sequence[Round]) -> Timing:
    samples = tuple(getattr(each[name], clock) for each in taken)
    shares = _shares(clock, name, reference, taken)
    # What is compared is the share, so it must be steady. The reference's is 1: it is judged by
    # what it takes beside itself, or where it has not that, by its seconds.
    judged: Sequence[float] = shares
    if name == reference:
        doubled = all(beside(AGAIN) in each for each in taken)
        judged = _shares(clock, AGAIN, reference, taken) if doubled else samples
    return Timing(
        median=statistics.median(samples),
        samples=samples,
        share=statistics.median(shares),
        share_low=min(shares),
        share_high=max(shares),
        stability=stability_of(judged),
    )


def _shares(clock: str, name: str, reference: str, taken: Sequence[Round]) -> list[float]:
    """A method's time over the reference's beside it, or else in the same round."""
    others = (each.get(beside(name), each[reference]) for each in taken)
    return [
        getattr(each[name], clock) / getattr(other, clock)
        for each, other in zip(taken, others, strict=True)
    ]


def unstable(methods: Sequence[Method], taken: Sequence[Round]) -> tuple[Method, ...]:
    """Methods whose times from end to end may not count, the reference never among them."""
    reference, *others = methods
    found = []
    for method in others:
        times = times_of(method.name, reference.name, taken)
        if times is not None and times.end_to_end and times.end_to_end.stability != "stable":
            found.append(method)
    return tuple(found)
