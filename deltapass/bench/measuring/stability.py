"""Whether times may count: a machine that was busy with something else says nothing."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Final

from deltapass.bench.record import Stability

NEAR: Final = 0.05  # of the median
MOST: Final = 0.8  # of the samples lie so near
LEAST: Final = 10  # samples; of fewer nothing can be said
ENDS: Final = 5  # samples at either end that are compared


def is_stable(samples: Sequence[float]) -> bool:
    """Whether samples neither drift nor scatter.

    The medians of the first and of the last ENDS samples lie within NEAR of each other, and MOST
    of all samples within NEAR of their median.
    """
    if len(samples) < LEAST:
        return False
    first, last = statistics.median(samples[:ENDS]), statistics.median(samples[-ENDS:])
    if abs(last - first) > NEAR * min(first, last):
        return False
    middle = statistics.median(samples)
    near = sum(abs(sample - middle) <= NEAR * middle for sample in samples)
    return near >= MOST * len(samples)


def stability_of(samples: Sequence[float]) -> Stability:
    """The same as a record says it."""
    return "stable" if is_stable(samples) else "inconclusive"
