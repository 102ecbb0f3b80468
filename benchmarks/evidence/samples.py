"""Images of every method, kept on disk in parts, so that a run that was stopped goes on."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch

import deltapass
from deltapass.demo.embedded import load_embedded
from evidence.methods import Method
from evidence.subjects import Subject

PART: Final = 25  # images drawn together, and kept together
GUIDANCE: Final = 2.0
FIRST_SEED: Final = 100_000  # far from those that anything was calibrated or tuned on


@dataclass
class Sampler:
    """Draws images of a subject, each method through one pipeline and two denoisers."""

    subject: Subject
    lowering: str = "eager"

    def __post_init__(self) -> None:
        self.pipeline: Any = load_embedded(self.subject.folder)
        self.pipeline.set_progress_bar_config(disable=True)
        model = self.pipeline.transformer
        eager = self.lowering == "eager"
        self._plain = model if eager else torch.compile(model, dynamic=False)
        # One for all schedules: another schedule is another session, not another compile.
        options = {"lowering": self.lowering, "strict": True}
        self._cached = torch.compile(model, backend="deltadit", dynamic=False, options=options)

    @contextmanager
    def using(self, method: Method) -> Iterator[Any]:
        """The pipeline, set up for a method."""
        before = self.pipeline.transformer
        self.pipeline.transformer = self._plain if method.plain else self._cached
        try:
            if method.plain:
                yield self.pipeline
            else:
                with deltapass.attach(self.pipeline, schedule=method.schedule):
                    yield self.pipeline
        finally:
            self.pipeline.transformer = before

    @torch.no_grad()
    def draw(self, method: Method, seeds: Sequence[int]) -> torch.Tensor:
        """Images (N, C, H, W) in 0..1.

        Raises:
            RuntimeError: If a method that should cache did not.
        """
        with self.using(method) as pipeline:
            images = pipeline(
                pipeline.examples(seeds),
                guidance_scale=GUIDANCE,
                num_inference_steps=method.steps,
                generator=[torch.Generator().manual_seed(seed) for seed in seeds],
                output_type="pt",
            ).images
            if not method.plain:
                _check_cached(deltapass.last_report(pipeline), method)
        return images


def _check_cached(report: Any, method: Method) -> None:
    """Images that were drawn plainly must not count for a method."""
    if report is None or not report.cached:
        raise RuntimeError(f"{method.name}: no step was cached")


def kept(sampler: Sampler, method: Method, count: int, work: Path) -> torch.Tensor:
    """Images of `count` seeds from FIRST_SEED on: read where they are kept, else drawn.

    Raises:
        ValueError: If `count` is no multiple of PART.
    """
    if count % PART:
        raise ValueError(f"images come in parts of {PART}, so {count} cannot be had")
    folder = work / sampler.subject.name / weights_digest(sampler.subject.folder) / method.key()
    parts = []
    for first in range(FIRST_SEED, FIRST_SEED + count, PART):
        path = folder / f"{first}.pt"
        if not path.exists():
            _write(path, sampler.draw(method, range(first, first + PART)))
        parts.append(torch.load(path))
    return torch.cat(parts)


def _write(path: Path, images: torch.Tensor) -> None:
    """Whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_suffix(".part")
    torch.save(images.clone(), aside)
    aside.replace(path)


def weights_digest(folder: Path) -> str:
    """Of a model's weights and its scheduler's settings."""
    found = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        if path.suffix == ".safetensors" or path.name.endswith("config.json"):
            found.update(path.read_bytes())
    return found.hexdigest()[:12]
