"""Running jobs, stage by stage, and the page of all that lies in a folder."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, final

from deltapass.bench.metrics.asking import RemoteAnswers
from deltapass.bench.page.write import write_page
from deltapass.bench.reading import records_in
from deltapass.bench.running.checking import checked
from deltapass.bench.running.concluding import conclude
from deltapass.bench.running.drawing import Part
from deltapass.bench.running.job import Job, Watch
from deltapass.bench.running.stages import Fresh, draw_all, noted, time_all
from deltapass.bench.sampling import Sampler
from deltapass.bench.subjects import Subject
from deltapass.tuning.search.workers import RayActors

STAGES: Final = ("draw", "time", "judge", "page")


@final
@dataclass(frozen=True, kw_only=True)
class How:
    """How jobs are run.

    Attributes:
        only: One of STAGES; None for all.
        fresh: Gives, for a job, what times rows again in a process of its own.
        ray: Address of a cluster that draws the images and judges them; None does it here.
    """

    only: str | None = None
    fresh: Callable[[Job], Fresh] | None = None
    ray: str | None = None

    def does(self, stage: str) -> bool:
        """Whether a stage is wanted."""
        return self.only in (None, stage)


def run_jobs(jobs: Sequence[Job], how: How, watch: Watch) -> Path | None:
    """Draw, time, judge; then write the page of everything in the output folder.

    Whatever was done before is kept, and not done again.

    Returns:
        The page's path; None where it was not wanted.

    Raises:
        BenchError: If something is known to fail beforehand; then nothing is begun.
    """
    checked(jobs)
    for job in jobs:
        named = _naming(watch, job)
        if how.does("draw"):
            _draw(job, how, named)
        if how.does("time"):
            time_all(job, named, None if how.fresh is None else how.fresh(job))
        if how.does("judge"):
            _judge(job, how, named)
    return page_of(jobs[0].output) if jobs and how.does("page") else None


def _naming(watch: Watch, job: Job) -> Watch:
    where = f"{job.suite.name}, {job.subject.name}"
    return lambda what, done, total: watch(f"{where}: {what}", done, total)


def page_of(output: Path) -> Path:
    """The page of all records below a folder.

    Raises:
        BenchError: If there are none.
        MissingLibraryError: If what draws it is not installed.
    """
    found = records_in(output)
    return write_page([*found.values()], output, sources=[*found])


# ---- on a cluster --------------------------------------------------------------------------------


class RemoteSampler:
    """What an actor of Ray holds: a sampler of its own; it gives the images, and writes nothing."""

    def __init__(self, given: tuple[Subject, str, str | None]) -> None:
        subject, lowering, solver = given
        self._sampler = Sampler(subject, lowering, solver)

    def work(self, part: Part) -> Any:
        """Images of a part; the error as text where its method cannot draw them."""
        failures: dict[str, str] = {}
        images = None
        with noted(failures, part.method):
            images = self._sampler.draw(part.method, part.seeds)
        return failures.get(part.method.name, images)


def _draw(job: Job, how: How, watch: Watch) -> None:
    if how.ray is None:
        draw_all(job, watch)
        return
    given = (job.subject, job.environment.draw_on, job.suite.solver)
    with closing(RayActors(how.ray, RemoteSampler, given)) as workers:
        draw_all(job, watch, workers)


def _judge(job: Job, how: How, watch: Watch) -> None:
    if how.ray is None or not job.suite.measures or job.subject.random_weights:
        conclude(job, watch)
        return
    with closing(RayActors(how.ray, RemoteAnswers, None)) as workers:
        conclude(job, watch, workers)
