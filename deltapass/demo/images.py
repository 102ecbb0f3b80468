"""Images (B, C, H, W) in 0..1: how near they are to others, in numbers, words and maps."""

from __future__ import annotations

import math
from typing import Final

import torch
from torch.nn import functional as F

COLUMNS: Final = 5


def mean_psnr(images: torch.Tensor, wanted: torch.Tensor) -> float:
    """Mean over images of the peak signal-to-noise ratio in dB; infinite for equal images."""
    squared_error = (images - wanted).square().mean(dim=(1, 2, 3))
    return float(-10 * squared_error.log10().mean())


def error_maps(images: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
    """How far each pixel is off, (B, H, W) in 0..1: the mean over its colours."""
    return (images - wanted).abs().mean(1)


def error_in_words(images: torch.Tensor, wanted: torch.Tensor) -> str:
    """How far off the pixels are, all of them and those of the worst image."""
    errors = error_maps(images, wanted).mean(dim=(1, 2)) * 100
    if not errors.any():
        return "equal, bit for bit"
    mean, worst = float(errors.mean()), float(errors.max())
    return f"pixels {mean:.2g} % off on average, {worst:.2g} % in the worst image"


def pixels(image: torch.Tensor) -> torch.Tensor:
    """One image (C, H, W) as it is drawn: (H, W), or (H, W, C) in colour."""
    return image.permute(1, 2, 0).squeeze(-1)


def grid(images: torch.Tensor, columns: int = COLUMNS) -> torch.Tensor:
    """One picture (H, W), or (H, W, C) in colour, of `columns` columns; what is left is black."""
    count, channels, height, width = images.shape
    rows = math.ceil(count / columns)
    padded = F.pad(images, (0, 0, 0, 0, 0, 0, 0, rows * columns - count))
    cells = padded.view(rows, columns, channels, height, width).permute(0, 3, 1, 4, 2)
    return cells.reshape(rows * height, columns * width, channels).squeeze(-1)
