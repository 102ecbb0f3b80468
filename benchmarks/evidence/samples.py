"""Images of every method, kept on disk in parts, so that a run that was stopped goes on."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import torch

from deltapass.bench import sampling
from deltapass.bench.environment import Environment
from deltapass.bench.files import write_whole
from deltapass.bench.methods.method import Method as Drawn
from deltapass.bench.subjects import embedded_subject
from evidence.methods import Method
from evidence.subjects import Subject

PART: Final = 25  # images drawn together, and kept together
GUIDANCE: Final = 2.0
FIRST_SEED: Final = 100_000  # far from those that anything was calibrated or tuned on


class Sampler:
    """Draws images of a subject as the benchmark suite does (`deltapass/bench/sampling.py`)."""

    def __init__(self, subject: Subject, lowering: str = "eager") -> None:
        self.subject = subject
        self._drawing = sampling.Sampler(
            embedded_subject(subject.name, Environment(batch=PART), GUIDANCE), lowering
        )
        self.pipeline: Any = self._drawing.subject.pipeline

    def draw(self, method: Method, seeds: Sequence[int]) -> torch.Tensor:
        """Images (N, C, H, W) in 0..1.

        Raises:
            BenchError: If a method that should cache did not.
        """
        kind = "plain" if method.plain else "cache"
        asked = Drawn(
            name=method.name,
            label=method.name,
            kind=kind,
            steps=method.steps,
            schedule=method.schedule,
        )
        return self._drawing.draw(asked, seeds)


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
    held = io.BytesIO()
    torch.save(images.clone(), held)
    write_whole(path, held.getvalue())


def weights_digest(folder: Path) -> str:
    """Of a model's weights and its scheduler's settings."""
    found = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        if path.suffix == ".safetensors" or path.name.endswith("config.json"):
            found.update(path.read_bytes())
    return found.hexdigest()[:12]
