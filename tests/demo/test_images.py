"""How near images are, in numbers, words and maps."""

from __future__ import annotations

import pytest
import torch

from deltapass.demo.images import error_in_words, error_maps, grid, mean_psnr, pixels


def test_psnr_of_a_known_error() -> None:
    wanted = torch.zeros(2, 1, 4, 4)
    assert mean_psnr(wanted + 0.1, wanted) == pytest.approx(20.0)
    assert mean_psnr(wanted, wanted) == float("inf")


def test_map_is_the_mean_over_colours() -> None:
    wanted = torch.zeros(1, 3, 1, 2)
    images = wanted.clone()
    images[0, :, 0, 1] = torch.tensor([0.3, -0.3, 0.0])
    torch.testing.assert_close(error_maps(images, wanted), torch.tensor([[[0.0, 0.2]]]))


def test_words_name_the_mean_and_the_worst_image() -> None:
    wanted = torch.zeros(2, 1, 4, 4)
    images = wanted + torch.tensor([0.01, 0.03]).view(2, 1, 1, 1)
    said = error_in_words(images, wanted)
    assert said == "pixels 2 % off on average, 3 % in the worst image"
    assert error_in_words(wanted, wanted) == "equal, bit for bit"


def test_pixels_are_grey_or_in_colour() -> None:
    assert pixels(torch.zeros(1, 2, 5)).shape == (2, 5)
    assert pixels(torch.zeros(3, 2, 5)).shape == (2, 5, 3)


def test_grid_places_images_row_by_row() -> None:
    images = torch.arange(3.0).view(3, 1, 1, 1).expand(3, 1, 2, 2)
    picture = grid(images, columns=2)
    assert picture.shape == (4, 4)
    assert [picture[0, 0], picture[0, 2], picture[2, 0], picture[2, 2]] == [0, 1, 2, 0]
