"""Distances of many images to real ones, as one part an image.

Such a distance is of all images together. It has parts all the same: each is the distance plus what
the distance owes to that image to first order, so that their mean is the distance. Resampling the
parts tells how it would vary with other images, and the difference of two methods may be taken
image by image. The real images are held fixed.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import torch

from deltapass.bench.metrics.fidelity import as_values
from deltapass.bench.metrics.intervals import Values

Kernel = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
CMMD_WIDTH: Final = 10.0
NOISE: Final = 1e-12  # of the largest eigenvalue: below lies rounding, whose root would show


def kid_parts(features: torch.Tensor, real: torch.Tensor) -> Values:
    """Parts of the kernel inception distance (unbiased).

    Shapes:
        N images, M real ones, D features: (N, D), (M, D) -> (N,).

    Source:
        Binkowski et al. 2018, arXiv:1801.01401: the polynomial kernel of degree 3.
    """
    return mmd_parts(features, real, _polynomial)


def cmmd_parts(features: torch.Tensor, real: torch.Tensor) -> Values:
    """Parts of the maximum mean discrepancy of joint text and image features of length one.

    Unbiased, unlike the published code, which keeps the diagonals and so is a little larger.

    Source:
        Jayasumana et al. 2024, arXiv:2401.09603: a Gaussian kernel of width 10.
    """
    return mmd_parts(features, real, _gaussian)


def mmd_parts(features: torch.Tensor, real: torch.Tensor, kernel: Kernel) -> Values:
    """Parts of the squared maximum mean discrepancy: (N, D), (M, D) -> (N,)."""
    ours, theirs = features.double(), real.double()
    count, others = len(ours), len(theirs)
    within = kernel(ours, ours)
    near_own = (within.sum(1) - within.diagonal()) / (count - 1)
    near_real = kernel(ours, theirs).mean(1)
    among = kernel(theirs, theirs)
    among_real = (among.sum() - among.diagonal().sum()) / (others * (others - 1))
    distance = near_own.mean() - 2 * near_real.mean() + among_real
    owed = 2 * (near_own - near_own.mean()) - 2 * (near_real - near_real.mean())
    return as_values(distance + owed)


def fid_parts(features: torch.Tensor, real: torch.Tensor) -> Values:
    """Parts of the Frechet distance between two normal distributions.

    The distance of N images is larger than that of infinitely many, all the more the fewer they
    are; only distances of equally many images to the same real ones may be compared. The parts
    (the infinitesimal jackknife) do not mend this bias, which all methods share.

    Shapes:
        N images, M real ones, D features: (N, D), (M, D) -> (N,).

    Source:
        Heusel et al. 2017, arXiv:1706.08500, Eq. 6; Efron 1982 for the parts.
    """
    ours, theirs = features.double(), real.double()
    count, covariance = len(ours), theirs.T.cov()
    apart = ours - theirs.mean(0)
    mean = apart.mean(0)
    around = apart - mean
    spread = around.square().sum(1) * (count / (count - 1))
    # The root of the product of both covariances has the eigenvalues of this, (N, N).
    values, vectors = torch.linalg.eigh(around @ covariance @ around.T / (count - 1))
    roots = values.where(values > values[-1] * NOISE, 0).sqrt()
    distance = mean @ mean + spread.mean() + covariance.trace() - 2 * roots.sum()
    owed = 2 * apart @ mean + spread - count * vectors.square() @ roots
    return as_values(distance + owed - owed.mean())


def inception_parts(probabilities: torch.Tensor) -> Values:
    """Parts of the inception score, exp of the mean divergence from the mean of all, one split.

    Shapes:
        N images, K classes: (N, K), rows that sum to one -> (N,).

    Source:
        Salimans et al. 2016, arXiv:1606.03498.
    """
    each = probabilities.double().clamp_min(1e-12)
    divergence = (each * (each.log() - each.mean(0).log())).sum(1)
    score = divergence.mean().exp()
    # What the mean of all moves by one image cancels, to first order.
    return as_values(score * (1 + divergence - divergence.mean()))


def _polynomial(one: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    found: torch.Tensor = (one @ other.T / one.shape[1] + 1) ** 3
    return found


def _gaussian(one: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    return (-torch.cdist(one, other).square() / (2 * CMMD_WIDTH**2)).exp()
