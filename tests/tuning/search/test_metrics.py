from __future__ import annotations

from typing import Any

import pytest
import torch

from deltapass.errors import OptionError
from deltapass.tuning.search.metrics import EQUAL_DB, METRICS, mean_squared_error, metric_of, psnr

IMAGES = torch.tensor([[0.0, 1.0], [0.5, 0.5]])


def test_psnr_of_images_is_by_their_peak_of_one() -> None:
    off = IMAGES + torch.tensor([[0.1, -0.1], [0.01, 0.01]])
    assert psnr(off, IMAGES).tolist() == pytest.approx([20.0, 40.0], rel=1e-5)
    assert psnr(IMAGES, IMAGES).tolist() == [EQUAL_DB] * 2


def test_psnr_of_latents_is_by_their_own_range() -> None:
    plain = torch.tensor([[-2.0, 2.0], [-20.0, 20.0]])
    off = plain + torch.tensor([[0.4, 0.4], [4.0, 4.0]])
    assert psnr(off, plain).tolist() == pytest.approx([20.0, 20.0], rel=1e-5)


def test_a_metric_is_named_or_a_function() -> None:
    assert metric_of("mse") is METRICS["mse"]
    own = metric_of(mean_squared_error)
    assert own.name == "mean_squared_error" and own.loss(3.0) == 3.0
    assert METRICS["psnr"].loss(3.0) == -3.0
    with pytest.raises(OptionError, match="did you mean 'psnr'"):
        metric_of("pnsr")


def test_a_function_may_give_one_number_for_all() -> None:
    own = metric_of(lambda ours, plain: (ours - plain).abs().mean())
    assert own.of(IMAGES + 0.5, IMAGES) == pytest.approx([0.5, 0.5])


@pytest.mark.parametrize("gives", [[1.0, 2.0, 3.0], [1.0, float("nan")]])
def test_a_function_must_give_a_finite_number_a_sample(gives: Any) -> None:
    with pytest.raises(OptionError, match="one finite number a sample"):
        metric_of(lambda ours, plain: torch.tensor(gives)).of(IMAGES, IMAGES)
