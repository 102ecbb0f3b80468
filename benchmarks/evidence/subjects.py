"""The trained models that are judged: what is real, and what is right."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

import torch

from deltapass.demo.attributes import Attributes
from deltapass.demo.embedded import ASSETS
from evidence import classifier
from evidence.intervals import Values
from evidence.measures import mean_error, shares_right

ROOT: Final = Path(__file__).parents[2]


@dataclass(frozen=True, kw_only=True)
class Subject:
    """A trained model with what its images are judged by.

    Attributes:
        folder: Where its weights and its tuned schedules are.
        real: (offset, count) -> real images (N, C, H, W) in 0..1; others for another offset.
        exact: (images, prompts) -> by the measure's name one value an image, (N,).
        judge: By whom, and how far that one can be trusted.
    """

    name: str
    folder: Path
    real: Callable[[int, int], torch.Tensor]
    exact: Callable[[torch.Tensor, Sequence[Any]], Mapping[str, Values]]
    judge: Callable[[], str]


# ---- garments ------------------------------------------------------------------------------------


def garments(work: Path) -> Subject:
    """The embedded model, judged by a classifier that is trained here on the same data set."""
    splits = functools.cache(functools.partial(_fashion_mnist(), work / "fashion-mnist"))

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

    return Subject(
        name="garments",
        folder=ASSETS / "garments",
        real=real,
        exact=exact,
        judge=says,
    )


def _fashion_mnist() -> Callable[..., tuple[torch.Tensor, torch.Tensor]]:
    """The data set as it is fetched for training."""
    _see_training()
    from dataset import load_split

    return load_split


# ---- nouns ---------------------------------------------------------------------------------------


def nouns(work: Path) -> Subject:
    """The model in colour; what its images show is told by the exact drawings of all parts."""
    _see_training()
    from accuracy import shown
    from nouns_parts import ATTRIBUTES, draw, load_parts

    parts, words = load_parts(work / "nouns-parts"), Attributes(ATTRIBUTES)

    def real(offset: int, count: int) -> torch.Tensor:
        with torch.random.fork_rng():
            torch.manual_seed(offset)
            return parts.render(draw(count)) / 2 + 0.5

    def exact(images: torch.Tensor, prompts: Sequence[Any]) -> dict[str, Values]:
        told = words.numbers(prompts)
        right = torch.stack([*shown(parts, images, told).values()], 1)
        drawing = parts.render(told) / 2 + 0.5
        return {"right": shares_right(right), "drawing": mean_error(images, drawing)}

    return Subject(
        name="nouns",
        folder=ASSETS / "nouns",
        real=real,
        exact=exact,
        judge=lambda: "the exact drawing that an image is nearest to, one attribute at a time",
    )


# ---- both ----------------------------------------------------------------------------------------


def _see_training() -> None:
    """The scripts of the folder `training` import each other by bare names."""
    if str(ROOT / "training") not in sys.path:
        sys.path.append(str(ROOT / "training"))


SUBJECTS: Final[Mapping[str, Callable[[Path], Subject]]] = MappingProxyType(
    {"garments": garments, "nouns": nouns}
)
