"""Measured time: whole batches of images, every method in every round, warm, in one process."""

from __future__ import annotations

import functools
import statistics
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Final

from deltapass.bench.measuring.clocks import Taken, timed
from deltapass.bench.measuring.stability import stability_of
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
    """Every method once a round; the reference, which is the first, stands there twice.

    All are warm: each has drawn the batch before. Rivals are warmed last, for some change settings
    of torch.compile while they are enabled.

    Args:
        sampler: What draws.
        methods: The reference first.
        seeds: Of the batch.
        turns: Numbers of the rounds: each has an order of its own.
    """
    for method in sorted(methods, key=lambda one: one.kind == "rival"):
        sampler.draw(method, seeds)
    named = [(method.name, method) for method in methods] + [(AGAIN, methods[0])]
    for turn in turns:
        # Who goes first changes, and so does who follows whom.
        place = turn * SHIFT % len(named)
        order = [*named[place:], *named[:place]]
        yield {
            name: take(sampler, method, seeds)
            for name, method in (order if turn % 2 == 0 else reversed(order))
        }


def take(sampler: Sampler, method: Method, seeds: Sequence[int]) -> Taken:
    """Times of one batch."""
    draw = functools.partial(sampler.draw, method, seeds)
    return timed(lambda clock: draw(clock=clock), sampler.subject.device)


def times_of(name: str, reference: str, taken: Sequence[Round]) -> Times | None:
    """A method's times over all rounds that have it; None where there are none."""
    of = [each for each in taken if name in each]
    if not of:
        return None
    return Times(**{clock: _timing(clock, name, reference, of) for clock in CLOCKS})


def _timing(clock: str, name: str, reference: str, taken: Sequence[Round]) -> Timing:
    samples = tuple(getattr(each[name], clock) for each in taken)
    shares = [getattr(each[name], clock) / getattr(each[reference], clock) for each in taken]
    return Timing(
        median=statistics.median(samples),
        samples=samples,
        share=statistics.median(shares),
        share_low=min(shares),
        share_high=max(shares),
        # What is compared is the share: what slows a whole round slows both. The reference has
        # nothing beside it, and is judged by its own seconds.
        stability=stability_of(samples if name == reference else shares),
    )


def unstable(methods: Sequence[Method], taken: Sequence[Round]) -> tuple[Method, ...]:
    """Methods whose times from end to end may not count, the reference never among them."""
    reference, *others = methods
    found = []
    for method in others:
        times = times_of(method.name, reference.name, taken)
        if times is not None and times.end_to_end and times.end_to_end.stability != "stable":
            found.append(method)
    return tuple(found)
