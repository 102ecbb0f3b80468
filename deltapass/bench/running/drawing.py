"""Images of every method, kept on disk in parts, so that a run that was stopped goes on."""

from __future__ import annotations

import functools
import hashlib
import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, final

import torch

import deltapass
from deltapass.bench.files import digest, write_whole
from deltapass.bench.methods.method import Method
from deltapass.bench.sampling import Sampler
from deltapass.bench.subjects import Subject

SOURCES: Final = Path(deltapass.__file__).parent
ROOMS: Final = ("../backends", "compiler", "graph", "schedule", "selector", "sessions", "pipelines")
KEPT: Final = "kept"


@final
@dataclass(frozen=True, kw_only=True)
class Part:
    """Images of one method that are drawn together."""

    method: Method
    seeds: tuple[int, ...]
    path: Path


def parts_of(
    sampler: Sampler, method: Method, seeds: Sequence[int], folder: Path
) -> tuple[Part, ...]:
    """The parts that the images of some seeds come in, and where each is kept.

    Suites share what they have in common: a part goes by what its images depend on.
    """
    subject, batch = sampler.subject, sampler.subject.batch

    def _call(some: tuple[int, ...]) -> str:
        return digest(repr(sorted(subject.call(some).items())))[:8]

    place = folder / KEPT / subject.name / f"{method.name}-{key(sampler, method)}"
    apart = (tuple(seeds[first : first + batch]) for first in range(0, len(seeds), batch))
    return tuple(
        Part(method=method, seeds=some, path=place / f"{some[0]}-{len(some)}-{_call(some)}.pt")
        for some in apart
    )


def key(sampler: Sampler, method: Method) -> str:
    """What images depend on besides their seeds, as a few letters."""
    subject = sampler.subject
    says: dict[str, Any] = {
        "model": subject.digest(),
        "steps": method.steps,
        "lowering": method.lowering or sampler.lowering,
        "solver": method.solver or sampler.solver,
        "weights": method.weights,
        "device": subject.device.type,
        "dtype": str(next(next(iter(subject.models.values())).parameters()).dtype),
        "torch": str(torch.__version__),
    }
    if method.schedule is not None:
        # Written out whole: a preset or a file may change, and so may the code that follows it.
        says |= {"schedule": repr(method.schedule), "options": repr(method.options)}
        says |= {"code": code_digest()}
    if method.rival is not None:
        says |= {"rival": method.rival, "settings": repr(method.settings)}
    return digest(says)[:12]


def missing(parts: Sequence[Part]) -> Iterator[Part]:
    """Those that were not drawn yet."""
    return (part for part in parts if not part.path.exists())


def draw_part(sampler: Sampler, part: Part) -> torch.Tensor:
    """Draw a part, and keep it: whole or not at all."""
    images = sampler.draw(part.method, part.seeds)
    keep(part, images)
    return images


def keep(part: Part, images: torch.Tensor) -> None:
    """Write a part, whole or not at all."""
    held = io.BytesIO()
    torch.save(images.clone(), held)
    write_whole(part.path, held.getvalue())


def images_of(parts: Sequence[Part]) -> torch.Tensor:
    """All of them, (N, C, H, W) in 0..1, in the order of their seeds."""
    return torch.cat([torch.load(part.path, weights_only=True) for part in parts])


def write_pictures(images: torch.Tensor, seeds: Sequence[int], folder: Path) -> tuple[Path, ...]:
    """Each image as FOLDER/SEED.png; those that are there already stay."""
    paths = tuple(folder / f"{seed}.png" for seed in seeds)
    for image, path in zip(images, paths, strict=True):
        content = _png(image)
        if not path.exists() or path.read_bytes() != content:
            write_whole(path, content)
    return paths


def _png(image: torch.Tensor) -> bytes:
    from PIL import Image

    pixels = (image.clamp(0, 1) * 255).round().to(torch.uint8)
    array = pixels[0] if len(pixels) == 1 else pixels.permute(1, 2, 0)
    held = io.BytesIO()
    Image.fromarray(array.contiguous().numpy()).save(held, "PNG")
    return held.getvalue()


@functools.cache
def code_digest() -> str:
    """Of all code that a cached image depends on."""
    found = hashlib.sha256()
    for room in ROOMS:
        for path in sorted((SOURCES / room).rglob("*.py")):
            found.update(path.read_bytes())
    return found.hexdigest()


def subject_folder(output: Path, suite: str, subject: Subject) -> Path:
    """Where the results of a suite on a model lie."""
    return output / suite / subject.name
