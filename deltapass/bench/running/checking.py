"""Everything that can be known to fail, found before anything is drawn."""

from __future__ import annotations

import contextlib
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from typing import Final

import torch

from deltapass.bench.metrics.context import JudgingContext
from deltapass.bench.metrics.intervals import too_few
from deltapass.bench.metrics.judging import usable
from deltapass.bench.paper import paper_table
from deltapass.bench.running.drawing import missing, parts_of
from deltapass.bench.running.figures import check_figures
from deltapass.bench.running.job import Job
from deltapass.bench.running.judging import judging_context
from deltapass.bench.sampling import Sampler
from deltapass.bench.solvers import scheduler_of
from deltapass.errors import BenchError, DeltapassError

BYTES: Final = 4  # of a number of a kept image
PICTURE: Final = 1.5  # what an image takes in all, over its kept numbers
FEWEST_ROUNDS: Final = 10


def problems(job: Job) -> tuple[str, ...]:
    """What will fail, a sentence each: a job without any can be begun."""
    return tuple(_problems(job))


def remarks(job: Job) -> tuple[str, ...]:
    """What will be missing from the results, though nothing fails."""
    found = [f"{name} is left out: {why}" for name, (_, why) in job.impossible.items()]
    if job.suite.timed and job.suite.rounds < FEWEST_ROUNDS:
        found.append(
            f"{job.suite.rounds} rounds are too few for times that count: all rows will be "
            f"inconclusive; {FEWEST_ROUNDS} or more are needed"
        )
    few = too_few(job.suite.images)
    if few is not None and job.suite.measures:
        found.append(few)
    with contextlib.suppress(DeltapassError):  # that is a problem, and said as one
        found.extend(usable(job.suite.measures, _context(job))[1])
    return tuple(found)


def _context(job: Job) -> JudgingContext:
    """As it will be once all is drawn; the images themselves are not looked at here."""
    to_come = torch.zeros(1, 3, 1, 1)
    return judging_context(job, to_come if job.fine else None, to_come)


def _problems(job: Job) -> Iterator[str]:
    own = job.subject.pipeline.scheduler
    for solver in dict.fromkeys((job.suite.solver, *(m.solver for m in job.methods))):
        if solver is not None:
            try:
                scheduler_of(solver, own)
            except DeltapassError as error:
                yield str(error)
    try:
        usable(job.suite.measures, _context(job))
    except DeltapassError as error:
        yield str(error)
    try:
        check_figures(job.suite.figures)
        if job.suite.paper is not None:
            paper_table(job.suite.paper)
    except BenchError as error:
        yield str(error)
    prompts = job.subject.prompts(job.seeds)
    if len(prompts) != len(job.seeds):
        yield f"there are {len(prompts)} prompts for {len(job.seeds)} images. Give one an image."
    yield from _no_place(job)


def _no_place(job: Job) -> Iterator[str]:
    nearest = next(p for p in (job.output.resolve(), *job.output.resolve().parents) if p.exists())
    try:
        with tempfile.TemporaryFile(dir=nearest):
            pass
    except OSError as error:
        yield f"{job.output} cannot be written: {error.strerror}. Choose another --output."
        return
    free, wanted = shutil.disk_usage(nearest).free, _bytes_wanted(job)
    if free < wanted:
        yield (
            f"{job.output} has {free / 2**30:.1f} GiB free, the images of {job.suite.name} take "
            f"about {wanted / 2**30:.1f} GiB. Choose another --output, or fewer --images."
        )


def _bytes_wanted(job: Job) -> float:
    """Of what is not there yet."""
    sampler = Sampler(job.subject, job.environment.draw_on, job.suite.solver)
    images = sum(
        len(part.seeds)
        for method in job.drawn
        for part in missing(parts_of(sampler, method, job.seeds, job.output))
    )
    return images * _numbers(job) * BYTES * PICTURE


def _numbers(job: Job) -> int:
    """Of one image: by the denoiser's own size, eight times larger where something decodes it."""
    config = getattr(next(iter(job.subject.models.values())), "config", None)
    side = getattr(config, "sample_size", None) or 64
    side = max(side) if isinstance(side, Sequence) else int(side)
    decoded = hasattr(job.subject.pipeline, "vae")
    return int(3 * (side * 8) ** 2 if decoded else 3 * side**2)


def checked(jobs: Sequence[Job]) -> None:
    """Raise BenchError with all problems of all jobs, if there are any."""
    found = [f"{job.suite.name} on {job.subject.name}: {p}" for job in jobs for p in problems(job)]
    if found:
        raise BenchError("; ".join(each.rstrip(".") for each in found), "Nothing was begun")
