"""LPIPS with its published weights, where those of its backbone are on disk."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any, Final

import torch

from deltapass.bench.metrics.features import named_path
from deltapass.bench.metrics.fidelity import as_values, batches
from deltapass.bench.metrics.intervals import Values
from deltapass.errors import BenchError

ALEXNET: Final = "DELTAPASS_ALEXNET"
SMALLEST: Final = 64  # pixels: below, nothing is left after the network's five stages


def learned_network() -> Any:
    """The network of LPIPS; nothing is downloaded.

    Raises:
        BenchError: If the weights of its backbone, or a library, are not there.
    """
    path = named_path(ALEXNET, "weights of AlexNet, torchvision's alexnet-owt-7be5be79.pth,")
    try:
        lpips = importlib.import_module("lpips")  # it builds the backbone with torchvision
    except ImportError as error:
        raise BenchError(
            f"{error.name} is not installed", "pip install lpips torchvision"
        ) from error
    return _with_backbone(lpips.LPIPS(net="alex", pnet_rand=True, verbose=False), path)


def _with_backbone(network: Any, path: Path) -> Any:
    """Put the backbone's own weights into its slices, whose layers keep their numbers."""
    held = torch.load(path, weights_only=True)
    layers = {
        name: layer
        for part in network.net.children()
        if isinstance(part, torch.nn.Module)
        for name, layer in part.named_children()
    }
    for name, layer in layers.items():
        if next(layer.parameters(), None) is not None:
            layer.load_state_dict(
                {kind: held[f"features.{name}.{kind}"] for kind in ("weight", "bias")}
            )
    return network.eval()


@torch.no_grad()
def learned_distance(images: torch.Tensor, wanted: torch.Tensor) -> Values:
    """LPIPS of each image in 0..1: (N, C, H, W) twice -> (N,); small images are enlarged.

    Raises:
        BenchError: As `learned_network`.
    """
    network = learned_network()
    pairs = zip(batches(images), batches(wanted), strict=True)
    found = [network(_seen(a), _seen(b), normalize=True).flatten() for a, b in pairs]
    return as_values(torch.cat(found))


def _seen(images: torch.Tensor) -> torch.Tensor:
    """In colour, and no smaller than the network can take."""
    colour = images.float().expand(-1, 3, -1, -1).clamp(0, 1)
    factor = -(-SMALLEST // min(colour.shape[-2:]))
    return torch.nn.functional.interpolate(colour, scale_factor=factor) if factor > 1 else colour
