"""Means of per-image values with bootstrap intervals, and verdicts on pairs of methods.

Both methods of a pair drew the same seeds, so their difference is taken image by image, which is
far tighter than comparing two means.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping
from typing import Final

import msgspec
import numpy as np
from numpy.typing import NDArray

from deltapass.bench.record import Difference, Interval, Verdict
from deltapass.errors import counted

Values = NDArray[np.float64]

RESAMPLES: Final = 10_000
LEVEL: Final = 0.95
SEED: Final = 0
# Of more images the mean is as normal as a bootstrap could show, whose resamples are too many.
MANY: Final = 2_000
NORMAL: Final = 1.959964  # standard errors on either side of a mean that hold LEVEL
POWER: Final = 0.841621  # standard errors more, for eight chances in ten to see a difference
FEW: Final = 30  # images, below which a percentile interval is too narrow for a verdict


def interval(values: Values) -> Interval:
    """Mean of one value an image, (N,), and its interval: percentiles of the bootstrap."""
    mean = float(values.mean())
    if len(values) > MANY:
        half = NORMAL * _standard_error(values)
        return Interval(mean=mean, low=mean - half, high=mean + half)
    means = _draws(len(values)) @ values / len(values)
    low, high = np.quantile(means, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Interval(mean=mean, low=float(low), high=float(high))


def paired(ours: Values, theirs: Values, *, higher: bool, margin: float) -> Difference:
    """Ours less theirs, image by image, and whether it is beyond doubt; the verdict is of ours.

    "better" and "worse" are intervals that leave zero out; "same" is one around zero that is all
    within the margin; "inconclusive" reaches farther, on one side at least. Of fewer than FEW
    images every difference is inconclusive (`doubted`).

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
    less = ours - theirs
    found = interval(less)
    verdict = _verdict(*_gain_and_loss(found, higher), margin)
    said = Difference(difference=found, verdict=verdict, detectable=detectable(less))
    return doubted(said, len(less))


def doubted(found: Difference, images: int) -> Difference:
    """The same difference, without a verdict where it is of fewer than FEW images."""
    if images >= FEW:
        return found
    reason = f"{counted(images, 'image')}; a verdict takes {FEW}"
    return msgspec.structs.replace(found, verdict="inconclusive", reason=reason)


def detectable(less: Values) -> float:
    """The smallest difference that so many pairs show in eight cases of ten.

    By the spread of the differences that were found, (N,), two-sided at LEVEL.
    """
    return (NORMAL + POWER) * _standard_error(less)


def holds(found: Difference, *, higher: bool, margin: float) -> bool:
    """Whether ours is at least as good: surely not worse by more than the margin, nor worse."""
    if found.verdict == "worse" or found.reason:
        return False
    return _gain_and_loss(found.difference, higher)[0] > -margin


def too_few(images: int) -> str | None:
    """A warning, where intervals of so few images promise more than they hold."""
    if images >= FEW:
        return None
    return (
        f"{counted(images, 'image')} of a method: intervals are too narrow below {FEW}, so no "
        "difference is given a verdict"
    )


def _gain_and_loss(found: Interval, higher: bool) -> tuple[float, float]:
    """The ends of a difference's interval, turned so that more is better."""
    return (found.low, found.high) if higher else (-found.high, -found.low)


def _verdict(gain: float, loss: float, margin: float) -> Verdict:
    """Of an interval from `gain` to `loss`, where more is better."""
    if gain > 0:
        return "better"
    if loss < 0:
        return "worse"
    return "same" if -margin < gain and loss < margin else "inconclusive"


def _standard_error(values: Values) -> float:
    """Of the mean of (N,); that of one value alone is not known, and so infinite."""
    if len(values) < 2:
        return math.inf
    return float(values.std(ddof=1)) / math.sqrt(len(values))


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
