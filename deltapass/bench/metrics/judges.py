"""Who judges images: what is real, and what is exactly right, of the models that we trained.

Their data is fetched by the scripts of the folder `training`, which lies in a checkout of the
repository and not in the installed package.
"""

from __future__ import annotations

import functools
import importlib
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

import numpy as np
import torch

from deltapass.bench.metrics import classifier
from deltapass.bench.metrics.fidelity import mean_error, shares_right
from deltapass.bench.metrics.intervals import Values
from deltapass.errors import BenchError
from deltapass.libraries import needs

TRAINING: Final = Path(__file__).parents[3] / "training"
PICTURES: Final = frozenset({".png", ".jpg", ".jpeg", ".webp", ".bmp"})


@dataclass(frozen=True, kw_only=True)
class Judge:
    """What is real, and what is right.

    Attributes:
        real: (offset, count) -> real images (N, C, H, W) in 0..1; others for another offset.
        exact: (images, prompts) -> by the measure's name one value an image, (N,).
        measures: Names of what `exact` gives.
        says: By whom, and how far that one can be trusted.
    """

    name: str
    real: Callable[[int, int], torch.Tensor]
    exact: Callable[[torch.Tensor, Sequence[Any]], Mapping[str, Values]]
    measures: tuple[str, ...]
    says: Callable[[], str]


def garments(work: Path) -> Judge:
    """Fashion-MNIST, and a classifier that is trained here on its training images.

    Raises:
        BenchError: Where there is no checkout to fetch the data with, or it cannot be fetched.
    """
    load_split = _from_training("dataset").load_split
    splits = functools.cache(functools.partial(_fetched, load_split, work / "fashion-mnist"))

    @functools.cache
    def judge() -> tuple[torch.nn.Module, float]:
        return classifier.trained(work / "classifier.pt", splits)

    def real(offset: int, count: int) -> torch.Tensor:
        images: torch.Tensor = splits("t10k")[0][offset : offset + count]
        return images / 2 + 0.5

    def exact(images: torch.Tensor, prompts: Sequence[Any]) -> dict[str, Values]:
        labels = torch.tensor(prompts)
        return {"right": shares_right(classifier.right(judge()[0], images * 2 - 1, labels))}

    def says() -> str:
        return f"a small convolutional classifier, {judge()[1]:.1%} right on the 10,000 test images"

    return Judge(name="garments", real=real, exact=exact, measures=("right",), says=says)


def nouns(work: Path) -> Judge:
    """Pictures drawn from parts; what an image shows is told by the exact drawings of all parts.

    Raises:
        BenchError: Where there is no checkout to fetch the data with, or it cannot be fetched.
    """
    drawings, shown = _from_training("nouns_parts"), _from_training("accuracy").shown
    from deltapass.demo.attributes import Attributes

    parts = _fetched(drawings.load_parts, work / "nouns-parts")
    words = Attributes(drawings.ATTRIBUTES)

    def real(offset: int, count: int) -> torch.Tensor:
        with torch.random.fork_rng():
            torch.manual_seed(offset)
            return parts.render(drawings.draw(count)) / 2 + 0.5  # type: ignore[no-any-return]

    def exact(images: torch.Tensor, prompts: Sequence[Any]) -> dict[str, Values]:
        told = words.numbers(prompts)
        right = torch.stack([*shown(parts, images, told).values()], 1)
        drawing = parts.render(told) / 2 + 0.5
        return {"right": shares_right(right), "drawing": mean_error(images, drawing)}

    return Judge(
        name="nouns",
        real=real,
        exact=exact,
        measures=("right", "drawing"),
        says=lambda: "the exact drawing that an image is nearest to, one attribute at a time",
    )


JUDGES: Final[Mapping[str, Callable[[Path], Judge]]] = MappingProxyType(
    {"garments": garments, "nouns": nouns}
)


def judge_of_folder(folder: Path, size: tuple[int, int]) -> Judge:
    """Real images from a folder of pictures, which have no prompts and so nothing exact.

    Args:
        folder: Of pictures, in the order of their names; sub-folders too.
        size: Height and width that all are brought to: that of the images judged.

    Raises:
        BenchError: If there is no picture in it.
        MissingLibraryError: If Pillow is not installed.
    """
    paths = sorted(path for path in folder.rglob("*") if path.suffix.lower() in PICTURES)
    if not paths:
        raise BenchError(f"{folder} holds no pictures", "Name a folder of PNG or JPEG files")
    with needs("pillow", "demo"):
        from PIL import Image

    def picture(path: Path) -> torch.Tensor:
        with Image.open(path) as opened:
            shown = opened.convert("RGB").resize((size[1], size[0]), Image.Resampling.BICUBIC)
        return torch.from_numpy(np.array(shown)).permute(2, 0, 1) / 255

    def real(offset: int, count: int) -> torch.Tensor:
        chosen = paths[offset : offset + count]
        if len(chosen) < 2:
            raise BenchError(
                f"{folder} holds {len(paths)} pictures, too few for {count} after {offset}",
                "Give more pictures, or ask for fewer real images",
            )
        return torch.stack([picture(path) for path in chosen])

    return Judge(
        name=folder.name,
        real=real,
        exact=lambda *_: {},
        measures=(),
        says=lambda: f"{len(paths)} pictures of {folder.name}",
    )


def _from_training(module: str) -> Any:
    """A module of the folder `training`, whose scripts import each other by bare names.

    Raises:
        BenchError: Where there is no such folder.
    """
    if not TRAINING.is_dir():
        raise BenchError(
            "real images and exact measures of the embedded models come from data that scripts of "
            "a checkout fetch, and this is an installed package",
            "Run the benchmark from a checkout of the repository, or leave these measures out",
        )
    if str(TRAINING) not in sys.path:
        sys.path.append(str(TRAINING))
    return importlib.import_module(module)


def _fetched(load: Callable[..., Any], *args: Any) -> Any:
    """What a script of `training` loads; where it gives up, as a script does, an error instead.

    Raises:
        BenchError: If it gives up.
    """
    try:
        return load(*args)
    except SystemExit as error:
        raise BenchError(
            f"data to judge by could not be fetched: {error}", "Put it there, or leave it out"
        ) from error
