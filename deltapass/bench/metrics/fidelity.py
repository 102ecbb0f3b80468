"""Nearness to other images of the same seeds: one value an image."""

from __future__ import annotations

from typing import Any, Final

import numpy as np
import torch

from deltapass.bench.metrics.intervals import Values
from deltapass.libraries import needs

CEILING: Final = 100.0  # dB, of images that are equal: a mean must stay finite
BATCH: Final = 25


def psnr(images: torch.Tensor, wanted: torch.Tensor) -> Values:
    """Peak signal-to-noise ratio of each image in 0..1, dB: (N, C, H, W) twice -> (N,)."""
    error = (images.double() - wanted.double()).square().mean(dim=(1, 2, 3))
    return as_values(-10 * error.clamp_min(10 ** (-CEILING / 10)).log10())


def mean_error(images: torch.Tensor, wanted: torch.Tensor) -> Values:
    """Mean absolute error of each image in 0..1: (N, C, H, W) twice -> (N,)."""
    return as_values((images.double() - wanted.double()).abs().mean(dim=(1, 2, 3)))


def ssim(images: torch.Tensor, wanted: torch.Tensor) -> Values:
    """Structural similarity of each image in 0..1: (N, C, H, W) twice -> (N,).

    Raises:
        MissingLibraryError: If torchmetrics is not installed.
    """
    with needs("torchmetrics", "bench"):
        from torchmetrics.functional.image import structural_similarity_index_measure

    pairs = zip(batches(images), batches(wanted), strict=True)
    found: list[Any] = [
        structural_similarity_index_measure(ours, theirs, data_range=1.0, reduction="none")
        for ours, theirs in pairs
    ]
    return as_values(torch.cat([each.reshape(-1) for each in found]))


@torch.no_grad()
def perceptual(network: Any, images: torch.Tensor, wanted: torch.Tensor) -> Values:
    """How far apart the two are in a network's stages: (N, C, H, W) twice -> (N,).

    At every place of every stage the channels are scaled to length one; the squared distances are
    averaged over places, then over stages. Zero for equal images. Built as LPIPS is, without its
    weights of channels, which were fitted to what people see: not to be called LPIPS.

    Args:
        network: Has `stages(images)`: values (N, C', H', W') of each of its stages.
        images: In 0..1.
        wanted: In 0..1.
    """
    found = []
    for ours, theirs in zip(batches(images), batches(wanted), strict=True):
        pairs = zip(network.stages(ours), network.stages(theirs), strict=True)
        apart = [(_to_length_one(a) - _to_length_one(b)).square().sum(1) for a, b in pairs]
        found.append(torch.stack([each.mean((1, 2)) for each in apart]).mean(0))
    return as_values(torch.cat(found))


def shares_right(right: torch.Tensor) -> Values:
    """What share of each image's attributes is right, (N,) or (N, A) -> (N,)."""
    return as_values(right.double().reshape(len(right), -1).mean(1))


def batches(images: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """(N, ...) in parts of BATCH, the last one smaller."""
    return tuple(images[first : first + BATCH] for first in range(0, len(images), BATCH))


def as_values(found: torch.Tensor) -> Values:
    """One value an image, (N,), as numbers on the host."""
    return found.detach().double().cpu().numpy().astype(np.float64)


def _to_length_one(values: torch.Tensor) -> torch.Tensor:
    lengths: torch.Tensor = values.norm(dim=1, keepdim=True)
    return values / lengths.clamp_min(1e-10)
