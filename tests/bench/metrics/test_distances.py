"""Distances of many images: equal to another library's, with parts that tell how they vary."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch

from deltapass.bench.metrics.distances import cmmd_parts, fid_parts, inception_parts, kid_parts
from deltapass.bench.metrics.intervals import Values, interval


def drawn(count: int, seed: int, shift: float = 0.0, size: int = 16) -> torch.Tensor:
    return torch.randn(count, size, generator=torch.Generator().manual_seed(seed)) + shift


def test_mean_of_the_parts_is_the_distance_of_another_library() -> None:
    kid = pytest.importorskip("torchmetrics.image.kid")
    ours, real = drawn(60, 0, 0.3), drawn(60, 1)
    wanted = kid.poly_mmd(real.double(), ours.double())
    assert kid_parts(ours, real).mean() == pytest.approx(float(wanted), rel=1e-9)


@pytest.mark.parametrize("count", [12, 60])  # fewer images than features, and more
def test_mean_of_frechet_s_parts_is_that_of_another_library(count: int) -> None:
    fid = pytest.importorskip("torchmetrics.image.fid")
    ours, real = drawn(count, 0, 0.3).double(), drawn(80, 1).double()
    wanted = fid._compute_fid(real.mean(0), real.T.cov(), ours.mean(0), ours.T.cov())
    # The other takes roots of a singular matrix, where rounding shows.
    near = 1e-3 if count < 16 else 1e-9
    assert fid_parts(ours, real).mean() == pytest.approx(float(wanted), rel=near)


def test_frechet_distance_of_known_normal_distributions() -> None:
    real = drawn(20_000, 0, size=4)
    ours = drawn(2_000, 1, size=4) * 2 + 1  # |1|^2 + tr(4 + 1 - 2 * 2) a dimension
    assert fid_parts(ours[:1000], real).mean() == pytest.approx(8, rel=0.05)


def test_inception_score_is_that_of_another_library() -> None:
    inception = pytest.importorskip("torchmetrics.image.inception")

    class Seen(torch.nn.Module):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return images.flatten(1).float()

    logits = drawn(40, 0, size=10) * 2
    with pytest.warns(UserWarning):  # of memory, and of the spread of one split
        score = inception.InceptionScore(feature=Seen(), splits=1)
        score.update(logits.view(40, 10, 1, 1))
        wanted, _ = score.compute()
    assert inception_parts(logits.softmax(1)).mean() == pytest.approx(float(wanted), rel=1e-5)


def test_inception_score_of_one_sure_class_each_is_their_number() -> None:
    assert inception_parts(torch.eye(7)).mean() == pytest.approx(7)
    assert inception_parts(torch.full((5, 7), 1 / 7)).mean() == pytest.approx(1)


@pytest.mark.parametrize("parts", [kid_parts, cmmd_parts])
def test_distance_of_images_like_the_real_ones_is_nothing_and_of_others_is_not(
    parts: Callable[[torch.Tensor, torch.Tensor], Values],
) -> None:
    real = drawn(400, 0)
    same = interval(parts(drawn(200, 1), real))
    other = interval(parts(drawn(200, 1, 0.3), real))
    assert same.low < 0 < same.high
    assert other.low > same.high


def inception_of(features: torch.Tensor, real: torch.Tensor) -> Values:
    return inception_parts((features * 2).softmax(1))


@pytest.mark.parametrize(
    ("parts", "size", "within"),
    [
        (kid_parts, 16, 0.35),
        (fid_parts, 16, 0.35),
        (fid_parts, 200, 0.35),  # more features than images
        (inception_of, 16, 0.35),
    ],
)
def test_interval_of_the_parts_is_as_wide_as_the_distance_varies(
    parts: Callable[[torch.Tensor, torch.Tensor], Values], size: int, within: float
) -> None:
    real = drawn(400, 0, size=size)
    varies = np.std([parts(drawn(60, seed, 0.3, size), real).mean() for seed in range(2, 62)])
    widths = []
    for seed in range(3):
        found = interval(parts(drawn(60, seed, 0.3, size), real))
        widths.append((found.high - found.low) / 3.92)
    assert np.mean(widths) == pytest.approx(varies, rel=within)
