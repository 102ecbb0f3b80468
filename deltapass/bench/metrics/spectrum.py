"""Which frequencies images hold: the relative log magnitude of their Fourier transform (Fig. 5)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import torch

from deltapass.bench.record import Figure, Series

LEAST: Final = 1e-12  # of the largest magnitude: what is nothing must have a logarithm


def relative_log_magnitude(images: torch.Tensor) -> torch.Tensor:
    """log(|F| / max |F|) of the grey value, averaged over the directions of a frequency.

    Frequencies are rings round the mean colour: 0 is that colour, the last one the finest pattern
    along the shorter side; corners beyond it are left out.

    Shapes:
        N images of H x W, K = min(H, W) // 2 + 1 rings: (N, C, H, W) -> (N, K).

    Source:
        Delta-DiT, arXiv:2406.01125, Eq. 4-5.
    """
    grey = images.double().mean(1)
    height, width = grey.shape[-2:]
    magnitude = torch.fft.fft2(grey).abs()
    largest = magnitude.amax((1, 2), keepdim=True)
    relative = (magnitude / largest.clamp_min(LEAST)).clamp_min(LEAST).log()
    rings = _rings(height, width)
    kept = rings < min(height, width) // 2 + 1
    sums = torch.zeros(len(grey), int(rings[kept].max()) + 1, dtype=torch.float64)
    sums.index_add_(1, rings[kept], relative[:, kept].cpu())
    found: torch.Tensor = sums / rings[kept].bincount()
    return found


def _rings(height: int, width: int) -> torch.Tensor:
    """The ring that each frequency (H, W) belongs to; of unlike sides, by the shorter one's."""
    shorter = min(height, width)
    rows, columns = (torch.fft.fftfreq(side).double() for side in (height, width))
    distance: torch.Tensor = (rows[:, None].square() + columns[None, :].square()).sqrt() * shorter
    return distance.round().long()


def spectrum_figure(images: Mapping[str, torch.Tensor], reference: str) -> Figure:
    """Curves of all rows over frequency, less that of the reference, whose own is the first one.

    Args:
        images: Row label -> (N, C, H, W) in 0..1, of the same seeds.
        reference: The label of the plain run.
    """
    plain = relative_log_magnitude(images[reference])
    rings = tuple(ring / (plain.shape[1] - 1) for ring in range(plain.shape[1]))
    series = [_curve(reference, rings, plain)]
    for label in images:
        if label != reference:
            less = relative_log_magnitude(images[label]) - plain
            series.append(_curve(f"{label}, less plain", rings, less))
    return Figure(
        name="spectrum",
        title="Fourier relative log magnitude",
        x_title="frequency, of the finest pattern",
        y_title="log(|F| / max |F|); of others the difference",
        about="Averaged over directions and images; 95 % of the mean over images. Below zero: less "
        "of that frequency than plain sampling gives, so blurred where the frequency is high.",
        series=tuple(series),
    )


def _curve(label: str, rings: tuple[float, ...], values: torch.Tensor) -> Series:
    mean = values.mean(0)
    half = 1.96 * values.std(0, correction=0) / max(1, len(values)) ** 0.5
    return Series(
        name=label,
        x=rings,
        y=tuple(mean.tolist()),
        low=tuple((mean - half).tolist()),
        high=tuple((mean + half).tolist()),
    )
