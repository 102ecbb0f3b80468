"""Fashion-MNIST for training and evaluation: found, or fetched as a Debian package.

Takes a folder; gives uint8 images and labels. The images themselves are never part of this
repository. Source: Xiao et al. 2017, arXiv:1708.07747, MIT licence.
"""

from __future__ import annotations

import gzip
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Final

import numpy as np
import torch

DEBIAN_PACKAGE: Final = "dataset-fashion-mnist"
SYSTEM_FOLDER: Final = Path("/usr/share/datasets/fashion-mnist")
CLASSES: Final = (
    "t-shirt", "trouser", "pullover", "dress", "coat",
    "sandal", "shirt", "sneaker", "bag", "ankle boot",
)  # fmt: skip


def load_split(folder: Path, split: str = "train") -> tuple[torch.Tensor, torch.Tensor]:
    """Read one split of the data set.

    Shapes:
        N images of 28 x 28 pixels: images (N, 1, 28, 28) in [-1, 1], labels (N,).

    Args:
        folder: Folder with the four idx files; fetched into it when they are missing.
        split: `train` (60,000 images) or `t10k` (10,000).

    Returns:
        float32 images and int64 labels.
    """
    source = _locate(folder)
    pixels = _read_idx(source / f"{split}-images-idx3-ubyte.gz", header=16)
    labels = _read_idx(source / f"{split}-labels-idx1-ubyte.gz", header=8)
    images = torch.from_numpy(pixels.copy()).view(-1, 1, 28, 28).float() / 127.5 - 1
    return images, torch.from_numpy(labels.copy()).long()


def _locate(folder: Path) -> Path:
    for candidate in (folder, SYSTEM_FOLDER):
        if (candidate / "train-images-idx3-ubyte.gz").exists():
            return candidate
    _fetch(folder)
    return folder


def _fetch(folder: Path) -> None:
    """Download and unpack the Debian package without installing it."""
    if shutil.which("apt-get") is None:
        raise SystemExit(
            f"Fashion-MNIST is not in {folder} and apt-get is not here to fetch it. Put its four "
            f"idx .gz files into {folder}, or install Debian's package {DEBIAN_PACKAGE}."
        )
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as scratch:
        subprocess.run(["apt-get", "download", DEBIAN_PACKAGE], cwd=scratch, check=True)
        package = next(Path(scratch).glob("*.deb"))
        subprocess.run(["dpkg-deb", "-x", str(package), scratch], check=True)
        for file in (Path(scratch) / SYSTEM_FOLDER.relative_to("/")).glob("*.gz"):
            shutil.copy(file, folder)


def _read_idx(path: Path, header: int) -> np.ndarray:
    return np.frombuffer(gzip.decompress(path.read_bytes()), dtype=np.uint8, offset=header)
