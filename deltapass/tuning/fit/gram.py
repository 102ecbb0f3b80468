"""Least squares from inner products alone: what is kept of features is a few numbers.

For the held deltas d_1 .. d_K and the true delta y of a row, the inner products between them say
all there is to know of every weighted sum: its best weights, and how far it is from y.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, final

import numpy as np
import torch

CHUNK: Final = 1 << 20  # elements that are taken to float64 at once: deltas of videos are large
NO_FLOAT64: Final = frozenset({"mps"})  # types of devices


@final
@dataclass(frozen=True, slots=True)
class Gram:
    """Inner products of K held deltas (newest first) and, last, the true one, summed over samples.

    Shapes:
        products: (K + 1, K + 1), symmetric, float64.
    """

    products: np.ndarray[tuple[int, int], np.dtype[np.float64]]

    def __add__(self, other: Gram) -> Gram:
        return Gram(self.products + other.products)

    @property
    def depth(self) -> int:
        """How many deltas are held."""
        return len(self.products) - 1

    @property
    def finite(self) -> bool:
        """Whether all deltas are: a single infinity or NaN in them shows here."""
        return bool(np.isfinite(self.products).all())

    def newest(self, count: int) -> Gram:
        """The products of no more than that many of the newest deltas, and of the true one."""
        kept = [*range(min(count, self.depth)), self.depth]
        return Gram(self.products[np.ix_(kept, kept)])

    @property
    def size(self) -> float:
        """Squared norm of the true delta."""
        return float(self.products[-1, -1])

    def error(self, weights: Sequence[float]) -> float:
        """Norm of the error of a weighted sum, relative to the norm of the true delta.

        0 where there is nothing to predict; missing weights are 0.
        """
        return relative(self.missed(weights), self.size)

    def missed(self, weights: Sequence[float]) -> float:
        """Squared norm of what a weighted sum misses; missing weights are 0."""
        signed = np.append(padded(weights, self.depth), -1.0)
        missed = float(signed @ self.products @ signed)
        # Rounding may leave a square below 0 where the sum is exact. NaN stays.
        return 0.0 if missed < 0.0 else missed


def gram(held: Sequence[torch.Tensor], truth: torch.Tensor) -> Gram:
    """The inner products of one row's deltas; waits for their device once.

    Args:
        held: The deltas held, newest first, each of the shape of `truth`.
        truth: The true delta.
    """
    rows = [delta.detach().reshape(-1) for delta in (*held, truth)]
    # Deltas of a row are so much alike that sums in float32 would not tell them apart.
    summed_on = "cpu" if truth.device.type in NO_FLOAT64 else truth.device
    sums = [
        (chunk @ chunk.T).cpu()
        for start in range(0, rows[0].numel(), CHUNK)
        for chunk in [
            torch.stack([row[start : start + CHUNK].to(summed_on).double() for row in rows])
        ]
    ]
    empty = torch.zeros(len(rows), len(rows), dtype=torch.float64)
    return Gram(sum(sums, empty).numpy())


def fitted(found: Gram, prior: Sequence[float], share: float) -> tuple[float, ...]:
    """Weights of the least error, drawn towards a predictor's own: prior + (1 - share) * change.

    Drawn along the line between both, not element by element: the deltas of a row are much alike,
    and a penalty on weights (ridge) holds their few directions that matter more loosely than the
    others. On trajectories not seen the error is at most a mean of both errors.

    Args:
        found: Inner products, summed over samples.
        prior: The predictor's weights, newest first; missing ones are 0.
        share: The predictor's, from 0 (plain least squares) to 1 (its weights).
    """
    wanted, count = padded(prior, found.depth), found.depth
    own, cross = found.products[:count, :count], found.products[:count, count]
    # lstsq: equal deltas, or none but zeros, leave directions in which nothing is known.
    change, *_ = np.linalg.lstsq(own, cross - own @ wanted, rcond=1e-12)
    return tuple(float(weight) for weight in wanted + (1.0 - share) * change)


def relative(missed: float, size: float) -> float:
    """A norm relative to another, both given squared; 0 where there is nothing to predict."""
    return math.sqrt(missed / size) if size else 0.0


def padded(weights: Sequence[float], count: int) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    """Weights with zeros for the older deltas they do not name."""
    return np.array([*weights, *[0.0] * (count - len(weights))], dtype=np.float64)
