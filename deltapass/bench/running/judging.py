"""A job's images judged: by what, against which rows, and by whom."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, final

import torch

from deltapass.bench.metrics.asking import Workers
from deltapass.bench.metrics.context import JudgingContext, context_of
from deltapass.bench.metrics.judges import judge_of_folder
from deltapass.bench.metrics.judging import Judgement, judge_rows
from deltapass.bench.running.drawing import Part, images_of
from deltapass.bench.running.job import Job


@final
class Rows(Mapping[str, torch.Tensor]):
    """Images by the row's name, read when they are asked for: not all need fit in memory."""

    def __init__(self, parts: Mapping[str, Sequence[Part]]) -> None:
        self._parts = parts

    def __getitem__(self, name: str) -> torch.Tensor:
        return images_of(self._parts[name])

    def __iter__(self) -> Iterator[str]:
        return iter(self._parts)

    def __len__(self) -> int:
        return len(self._parts)


def judged_rows(
    rows: Rows, job: Job, fine: Sequence[Part] | None, workers: Workers | None
) -> Judgement:
    """What is said of the images of all rows that were drawn.

    Args:
        rows: Their images.
        job: Of which.
        fine: Images of many steps, if a measure needs them.
        workers: Who judge; this process by default.
    """
    if not job.suite.measures or job.subject.random_weights:
        return Judgement(measures=(), means={}, values={})
    plain = [m.name for m in job.methods if m.kind in ("plain", "steps") and m.name in rows]
    shown = None if fine is None else images_of(fine)
    context = judging_context(job, shown, rows[job.reference.name])
    return judge_rows(
        rows,
        job.reference.name,
        dataclasses.replace(context, workers=workers),
        measures=job.suite.measures,
        against=plain,
    )


def judging_context(
    job: Job, fine: torch.Tensor | None = None, judged: torch.Tensor | None = None
) -> JudgingContext:
    """What images are judged by: those of many steps, and real ones as large as those judged."""
    given: dict[str, Any] = {
        "prompts": job.subject.prompts(job.seeds),
        "steps": job.suite.steps,
        "fine": fine,
        "fine_steps": job.suite.fine_steps,
    }
    if job.environment.real is not None and judged is not None:
        size = int(judged.shape[-2]), int(judged.shape[-1])
        given["judge"] = functools.partial(judge_of_folder, Path(job.environment.real), size)
    return context_of(job.subject.name, job.data, **given)
