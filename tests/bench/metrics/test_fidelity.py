"""Nearness of images, against what is known by hand or by another library."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch

from deltapass.bench.metrics.fidelity import (
    CEILING,
    mean_error,
    perceptual,
    psnr,
    shares_right,
    ssim,
)


def drawn(seed: int, count: int = 3) -> torch.Tensor:
    return torch.rand(count, 3, 24, 24, generator=torch.Generator().manual_seed(seed))


def test_psnr_of_known_errors_image_by_image() -> None:
    wanted = torch.zeros(3, 1, 4, 4)
    images = wanted + torch.tensor([0.1, 0.01, 0.0]).view(3, 1, 1, 1)
    assert psnr(images, wanted) == pytest.approx([20.0, 40.0, CEILING], abs=1e-4)


def test_mean_error_is_absolute_and_image_by_image() -> None:
    wanted = torch.zeros(2, 3, 4, 4)
    images = wanted.clone()
    images[0, 0] += 0.3
    images[1] -= 0.2
    assert mean_error(images, wanted) == pytest.approx([0.1, 0.2], abs=1e-6)


def test_ssim_is_one_of_equal_images_and_falls_with_noise_image_by_image() -> None:
    pytest.importorskip("torchmetrics")
    wanted = drawn(0)
    images = wanted + torch.tensor([0.0, 0.05, 0.3]).view(3, 1, 1, 1) * drawn(1).sub(0.5)
    found = ssim(images, wanted)
    assert found[0] == pytest.approx(1.0, abs=1e-5)
    assert 1 > found[1] > found[2] > 0
    assert ssim(images[1:2], wanted[1:2]) == pytest.approx(found[1:2], abs=1e-6)


class Channels:
    """Stands for a network: two stages that the pictures themselves are."""

    def stages(self, images: torch.Tensor) -> Iterator[torch.Tensor]:
        yield images
        yield images[:, :, ::2, ::2]


def test_perceptual_distance_is_between_directions_of_channels() -> None:
    red, green = torch.zeros(2, 2, 3, 4, 4).unbind()
    red[:, 0], green[:, 1] = 0.5, 0.9
    green[1] = red[1] * 2  # brighter, and of the same direction
    assert perceptual(Channels(), red, green) == pytest.approx([2.0, 0.0], abs=1e-6)
    half = red.clone()
    half[0, :, 0] = green[0, :, 0]  # one row of four; in the second stage one of two
    assert perceptual(Channels(), red, half)[0] == pytest.approx((2 / 4 + 2 / 2) / 2)


def test_share_of_attributes_that_are_right() -> None:
    assert list(shares_right(torch.tensor([[True, False], [True, True]]))) == [0.5, 1.0]
    assert list(shares_right(torch.tensor([True, False]))) == [1.0, 0.0]
    assert shares_right(torch.tensor([True])).dtype == np.float64
