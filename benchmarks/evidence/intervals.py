"""Means of per-image values with bootstrap intervals, and verdicts on pairs of methods.

Both methods of a pair drew the same seeds, so their difference is taken image by image, which is
far tighter than comparing two means.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Literal

import numpy as np
from numpy.typing import NDArray

Values = NDArray[np.float64]
Verdict = Literal["better", "same", "worse", "inconclusive"]

RESAMPLES: Final = 10_000
LEVEL: Final = 0.95
SEED: Final = 0


@dataclass(frozen=True, slots=True)
class Interval:
    """A mean, and where it would lie for other images of the same kind (95 % of resamples)."""

    mean: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Difference:
    """Ours less theirs, the same images; the verdict is of ours.

    `holds` is whether ours is at least as good: surely not worse by more than the margin.
    """

    difference: Interval
    verdict: Verdict
    holds: bool


def interval(values: Values) -> Interval:
    """Mean and percentile bootstrap interval of one value an image, (N,)."""
    means = _draws(len(values)) @ values / len(values)
    low, high = np.quantile(means, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Interval(float(values.mean()), float(low), float(high))


def paired(ours: Values, theirs: Values, *, higher: bool, margin: float) -> Difference:
    """The difference over the same images, and whether it is beyond doubt.

    "better" and "worse" are intervals that leave zero out; "same" is one around zero that is all
    within the margin; "inconclusive" reaches farther, on one side at least.

    Args:
        ours: One value an image, (N,).
        theirs: The other method's, of the same seeds.
        higher: Whether more is better.
        margin: What is too little to matter.

    Raises:
        ValueError: If the two are not of the same images.
    """
    if ours.shape != theirs.shape:
        raise ValueError(f"{len(ours)} images cannot be paired with {len(theirs)}")
    found = interval(ours - theirs)
    gain, loss = (found.low, found.high) if higher else (-found.high, -found.low)
    verdict = _verdict(gain, loss, margin)
    return Difference(found, verdict, verdict != "worse" and gain > -margin)


def _verdict(gain: float, loss: float, margin: float) -> Verdict:
    """Of an interval from `gain` to `loss`, where more is better."""
    if gain > 0:
        return "better"
    if loss < 0:
        return "worse"
    return "same" if -margin < gain and loss < margin else "inconclusive"


def as_good_as(holds: Mapping[int, bool]) -> int | None:
    """The most plain steps that a method is at least as good as, and as all fewer ones.

    Args:
        holds: Plain steps -> whether it is as good as these.
    """
    reached = None
    for steps in sorted(holds):
        if not holds[steps]:
            break
        reached = steps
    return reached


def equal_time_rival(share: float, plain: Mapping[int, float]) -> int | None:
    """The fewest plain steps that take no less time than `share`; None if all are quicker.

    Args:
        share: Time of a method over that of the full plain run.
        plain: Plain steps -> the same of theirs.
    """
    return min((steps for steps, taken in plain.items() if taken >= share), default=None)


@functools.cache
def _draws(count: int) -> NDArray[np.float64]:
    """How often each image is in each resample, (RESAMPLES, count): the same for all methods."""
    random = np.random.default_rng(SEED)
    return random.multinomial(count, np.full(count, 1 / count), RESAMPLES).astype(np.float64)
