"""The trained models that are judged: how to sample them, what is real, and what is right."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

import torch

from deltapass.demo.embedded import EMBEDDED, load_embedded
from evidence import classifier
from evidence.intervals import Values
from evidence.measures import shares_right

ROOT: Final = Path(__file__).parents[2]


@dataclass(frozen=True, kw_only=True)
class Subject:
    """A trained model with what its images are judged by.

    Attributes:
        folder: Where its weights and its tuned schedules are.
        load: Gives its pipeline.
        draw: (pipeline, seeds, steps) -> images (N, C, H, W) in 0..1, what is asked of each and its
            noise by its seed alone.
        real: (offset, count) -> real images (N, C, H, W) in 0..1; others for another offset.
        right: (images, seeds) -> share of what was asked that each image shows, (N,).
        judge: By whom, and how far that one can be trusted.
    """

    name: str
    folder: Path
    load: Callable[[], Any]
    draw: Callable[[Any, Sequence[int], int], torch.Tensor]
    real: Callable[[int, int], torch.Tensor]
    right: Callable[[torch.Tensor, Sequence[int]], Values]
    judge: str


# ---- garments ------------------------------------------------------------------------------------

GUIDANCE: Final = 2.0


def garments(work: Path) -> Subject:
    """The embedded model, judged by a classifier that is trained here on the same data set."""
    splits = functools.cache(functools.partial(_fashion_mnist(), work / "fashion-mnist"))
    model, accuracy = classifier.trained(work / "classifier.pt", splits)

    def real(offset: int, count: int) -> torch.Tensor:
        images: torch.Tensor = splits("t10k")[0][offset : offset + count]
        return images / 2 + 0.5

    def right(images: torch.Tensor, seeds: Sequence[int]) -> Values:
        labels = torch.tensor([_class_of(seed) for seed in seeds])
        return shares_right(classifier.right(model, images * 2 - 1, labels))

    return Subject(
        name="garments",
        folder=EMBEDDED,
        load=load_embedded,
        draw=_draw_garments,
        real=real,
        right=right,
        judge=f"a small convolutional classifier, {accuracy:.1%} right on the 10,000 test images",
    )


def _draw_garments(pipeline: Any, seeds: Sequence[int], steps: int) -> torch.Tensor:
    return _draw(pipeline, [_class_of(seed) for seed in seeds], seeds, steps)


def _class_of(seed: int) -> int:
    return seed % classifier.CLASSES


def _fashion_mnist() -> Callable[..., tuple[torch.Tensor, torch.Tensor]]:
    """The data set as it is fetched for training."""
    _see_training()
    from dataset import load_split

    return load_split


# ---- nouns ---------------------------------------------------------------------------------------


def nouns(work: Path) -> Subject:
    """The model in colour; what its images show is told by the exact drawings of all parts."""
    _see_training()
    from accuracy import attribute_accuracy
    from deltapass.demo.attributes import Attributes
    from nouns_parts import ATTRIBUTES, draw, load_parts

    parts, words = load_parts(work / "nouns-parts"), Attributes(ATTRIBUTES)

    def sample(pipeline: Any, seeds: Sequence[int], steps: int) -> torch.Tensor:
        return _draw(pipeline, _prompts(words, seeds), seeds, steps)

    def real(offset: int, count: int) -> torch.Tensor:
        with torch.random.fork_rng():
            torch.manual_seed(offset)
            return parts.render(draw(count)) / 2 + 0.5

    def right(images: torch.Tensor, seeds: Sequence[int]) -> Values:
        found = []
        for image, prompt in zip(images.split(1), _prompts(words, seeds), strict=True):
            shown = attribute_accuracy(parts, image, words.numbers([prompt]))
            found.append([shown[attribute] for attribute in words.parts])
        return shares_right(torch.tensor(found))

    return Subject(
        name="nouns",
        folder=EMBEDDED.parent / "nouns",
        load=functools.partial(load_embedded, EMBEDDED.parent / "nouns"),
        draw=sample,
        real=real,
        right=right,
        judge="the exact drawing that an image is nearest to, one attribute at a time",
    )


def _prompts(words: Any, seeds: Sequence[int]) -> list[str]:
    """Of every seed its own, whatever the others are."""
    return [words.random_prompts(1, seed=seed)[0] for seed in seeds]


# ---- both ----------------------------------------------------------------------------------------


def _draw(pipeline: Any, asked: Sequence[Any], seeds: Sequence[int], steps: int) -> torch.Tensor:
    images: torch.Tensor = pipeline(
        asked,
        guidance_scale=GUIDANCE,
        num_inference_steps=steps,
        generator=[torch.Generator().manual_seed(seed) for seed in seeds],
        output_type="pt",
    ).images
    return images


def _see_training() -> None:
    """The scripts of the folder `training` import each other by bare names."""
    if str(ROOT / "training") not in sys.path:
        sys.path.append(str(ROOT / "training"))


SUBJECTS: Final[Mapping[str, Callable[[Path], Subject]]] = MappingProxyType(
    {"garments": garments, "nouns": nouns}
)
