"""Per-image measures against what is known by hand, or by another library."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from evidence.intervals import interval
from evidence.measures import CEILING, kid_parts, mean_error, psnr, shares_right


def drawn(count: int, seed: int, shift: float = 0.0) -> torch.Tensor:
    return torch.randn(count, 16, generator=torch.Generator().manual_seed(seed)) + shift


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


def test_mean_of_the_parts_is_the_distance_of_another_library() -> None:
    kid = pytest.importorskip("torchmetrics.image.kid")
    ours, real = drawn(60, 0, 0.3), drawn(60, 1)
    wanted = kid.poly_mmd(real.double(), ours.double())
    assert kid_parts(ours, real).mean() == pytest.approx(float(wanted), rel=1e-9)


def test_distance_of_images_like_the_real_ones_is_nothing_and_of_others_is_not() -> None:
    real = drawn(400, 0)
    same = interval(kid_parts(drawn(200, 1), real))
    other = interval(kid_parts(drawn(200, 1, 0.3), real))
    assert same.low < 0 < same.high
    assert other.low > same.high


def test_interval_of_the_parts_is_as_wide_as_the_distance_varies() -> None:
    real = drawn(400, 0)
    varies = np.std([kid_parts(drawn(100, seed, 0.3), real).mean() for seed in range(2, 82)])
    found = interval(kid_parts(drawn(100, 1, 0.3), real))
    assert (found.high - found.low) / 3.92 == pytest.approx(varies, rel=0.35)


def test_share_of_attributes_that_are_right() -> None:
    assert list(shares_right(torch.tensor([[True, False], [True, True]]))) == [0.5, 1.0]
    assert list(shares_right(torch.tensor([True, False]))) == [1.0, 0.0]
