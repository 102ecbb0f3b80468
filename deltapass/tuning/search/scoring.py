"""Running candidates on seeds: one batch of trajectories, held against the plain ones."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

from deltapass.compiler.tracing import graphs_compiled
from deltapass.schedule.explicit import AnySchedule
from deltapass.tuning.loops import PLAIN, Loop, Sampled
from deltapass.tuning.search.metrics import Metric


@final
@dataclass(frozen=True, slots=True)
class Batch:
    """Seeds that are sampled at once. All batches are equally long, so that one graph serves all.

    Attributes:
        seeds: As many as a batch has; the last batch repeats some.
        count: How many of them count.
    """

    seeds: tuple[int, ...]
    count: int


@final
@dataclass(frozen=True, kw_only=True, slots=True)
class Task:
    """One batch under one schedule.

    Attributes:
        schedule: What is cached when; PLAIN for nothing.
        batch: The seeds.
        steps: Steps asked of the sampler, if not the loop's own.
    """

    schedule: AnySchedule = PLAIN
    batch: Batch
    steps: int | None = None


@final
@dataclass(frozen=True, kw_only=True, slots=True)
class Score:
    """What a task gave.

    Attributes:
        values: Values of the metric, one a seed that counts.
        steps: Steps of a trajectory, as the scheduler counts them.
        seconds: Wall time of the batch.
        compiles: Graphs that were compiled on the way.
        share: MACs of the trajectories, as a part of those of full steps.
    """

    values: tuple[float, ...]
    steps: int
    seconds: float
    compiles: int
    share: float


@final
class Scorer:
    """Scores tasks by one loop; keeps the plain samples of every batch it met, and no features."""

    def __init__(self, loop: Loop, metric: Metric) -> None:
        self._loop, self._metric = loop, metric
        self._plain: dict[tuple[int, ...], Sampled] = {}

    def plain(self, batch: Batch) -> Sampled:
        """The plain trajectories of a batch."""
        if batch.seeds not in self._plain:
            self._plain[batch.seeds] = self._loop.run(batch.seeds)
        return self._plain[batch.seeds]

    def score(self, task: Task) -> Score:
        """Run a task.

        Raises:
            LoopError: If the loop does not give one sample a seed.
            OptionError: If the metric does not give one number a sample.
        """
        before, started = graphs_compiled(), time.perf_counter()
        wanted = self.plain(task.batch)
        mine = task.schedule == PLAIN and task.steps in (None, self._loop.steps)
        given = (
            wanted if mine else self._loop.run(task.batch.seeds, task.schedule, steps=task.steps)
        )
        values = self._metric.of(given.samples, wanted.samples)
        return Score(
            values=tuple(values[: task.batch.count]),
            steps=given.steps,
            seconds=given.seconds if mine else time.perf_counter() - started,
            compiles=graphs_compiled() - before,
            share=1.0 - given.report.saved_share,
        )


def batches_of(seeds: Sequence[int], size: int) -> tuple[Batch, ...]:
    """Seeds in batches of one length; the last is filled up with the first seeds again."""
    size = min(size, len(seeds))
    found = []
    for start in range(0, len(seeds), size):
        some = tuple(seeds[start : start + size])
        filled = (*some, *(seeds[i % len(seeds)] for i in range(size - len(some))))
        found.append(Batch(filled, len(some)))
    return tuple(found)
