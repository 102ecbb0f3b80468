"""The spectrum against closed forms."""

from __future__ import annotations

import math

import pytest
import torch

from deltapass.bench.metrics.spectrum import LEAST, relative_log_magnitude, spectrum_figure


def wave(cycles: int, size: int = 16, height: float = 0.25) -> torch.Tensor:
    phase = 2 * math.pi * cycles * torch.arange(size) / size
    return (0.5 + height * phase.cos()).expand(1, 3, size, size)


def test_a_wave_stands_in_its_own_ring_and_nowhere_else() -> None:
    found = relative_log_magnitude(wave(4))[0]
    assert len(found) == 9
    assert found[0] == 0  # the mean colour is the largest
    # Of the ring's members two hold a half of the height over the mean; the others hold nothing.
    rows, columns = (torch.fft.fftfreq(16) * 16 for _ in range(2))
    members = int(((rows[:, None] ** 2 + columns**2).sqrt().round() == 4).sum())
    nothing = math.log(LEAST)
    expected = (2 * math.log(0.125 / 0.5) + (members - 2) * nothing) / members
    assert float(found[4]) == pytest.approx(expected, abs=0.5)  # rounding of the transform
    assert all(float(found[ring]) < -30 * math.log(2) for ring in (1, 2, 3, 5, 6, 7, 8))


def test_brightness_and_size_of_all_change_nothing() -> None:
    images = torch.rand(2, 3, 12, 12, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(relative_log_magnitude(images), relative_log_magnitude(images * 0.3))
    assert relative_log_magnitude(images[:, :, :, :8]).shape == (2, 5)


def test_white_noise_is_flat_but_for_the_mean() -> None:
    images = torch.rand(400, 1, 16, 16, generator=torch.Generator().manual_seed(0))
    found = relative_log_magnitude(images).mean(0)[1:]
    assert float(found.max() - found.min()) < 0.15


def test_blur_takes_the_finest_patterns_first() -> None:
    sharp = torch.rand(8, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    blurred = torch.nn.functional.avg_pool2d(
        torch.nn.functional.pad(sharp, (1, 1, 1, 1), mode="circular"), 3, 1
    )
    figure = spectrum_figure({"plain": sharp, "cached": blurred}, "plain")
    plain, less = figure.series
    assert (plain.name, less.name) == ("plain", "cached, less plain")
    assert plain.x[0] == 0
    assert plain.x[-1] == 1
    # The filter's own response along an axis: (1 + 2 cos(2 pi f)) / 3.
    assert less.y[1] == pytest.approx(math.log((1 + 2 * math.cos(2 * math.pi / 16)) / 3), abs=0.06)
    assert less.y[1] > less.y[3] > less.y[5]
    assert all(low <= y <= high for low, y, high in zip(less.low, less.y, less.high, strict=True))
