"""What a search found: schedules, how near they are on seeds it never saw, and beside what."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final, final

import numpy as np
from rich.console import Group
from rich.table import Table as RichTable
from rich.text import Text

from deltapass.errors import counted
from deltapass.schedule.explicit import ExplicitSchedule
from deltapass.schedule.files import schedule_content, table_text
from deltapass.sessions.report import NO_WRAP, plain_text
from deltapass.tuning.search.costs import Costs
from deltapass.tuning.search.metrics import Metric, mean

PLAIN_STEPS, PAPER, LINEAR, FOUND = "plain", "paper", "linear", "found"
RESAMPLES: Final = 4000
LEVEL: Final = 95  # per cent of an interval


@final
@dataclass(frozen=True, kw_only=True, slots=True)
class Measured:
    """One method on the held-out seeds.

    Attributes:
        name: For people.
        kind: PLAIN_STEPS, PAPER, LINEAR or FOUND.
        steps: Steps of its trajectories.
        cost: Share of the plain trajectory.
        values: Of the metric, one a seed.
        seconds: Wall time of a batch, the median over batches.
    """

    name: str
    kind: str
    steps: int
    cost: float
    values: tuple[float, ...]
    seconds: float

    @property
    def mean(self) -> float:
        """Over seeds."""
        return mean(self.values)

    @property
    def interval(self) -> tuple[float, float]:
        """Bootstrap interval of the mean."""
        return bootstrap(self.values)


@final
@dataclass(frozen=True, kw_only=True, slots=True)
class Found:
    """The best schedule for one goal.

    Attributes:
        goal: What was looked for, in words.
        schedule: With its weights, and what it was made for.
        cost: Share of the plain trajectory.
        value: Mean of the metric on the seeds of the search.
    """

    goal: str
    schedule: ExplicitSchedule
    cost: float
    value: float


@final
@dataclass(frozen=True, kw_only=True)
class Tuned:
    """What `tune` gives. `save_schedule` writes its schedule, `save_pareto` its picture.

    Attributes:
        found: The best schedule for every goal, in the order of the goals; shorter where none
            reached a target.
        measured: Methods on the held-out seeds; empty where the search was cut short.
        trials: Cost and value of every candidate that ran on all seeds of the search.
        missed: Goals that nothing reached, in words.
        counts: Trials run to the end, and stopped early.
        compiles: Graphs that were compiled in the first trial, and in all later ones.
        costs: What a step costs, by what it skips.
        metric: How samples were compared.
        blocks: Blocks of the model.
        interrupted: Whether Ctrl-C ended it; with `storage` the same call goes on.
        seconds: Wall time of the search.
    """

    found: tuple[Found, ...]
    measured: tuple[Measured, ...]
    trials: tuple[tuple[float, float], ...]
    missed: tuple[str, ...]
    counts: tuple[int, int]
    compiles: tuple[int, int]
    costs: Costs
    metric: Metric
    blocks: int
    interrupted: bool
    seconds: float

    @property
    def schedule(self) -> ExplicitSchedule:
        """The schedule of the first goal."""
        return self.found[0].schedule

    @property
    def plain_curve(self) -> list[tuple[int, float, float]]:
        """Steps, share and mean value of plain trajectories, the fewest steps first."""
        plain = [each for each in self.measured if each.kind == PLAIN_STEPS]
        return sorted((each.steps, each.cost, each.mean) for each in plain)

    def equivalent(self, value: float) -> float | None:
        """How many plain steps are as near, between those that were run; None beyond them."""
        curve = sorted((mean, steps) for steps, _, mean in self.plain_curve)
        if len(curve) < 2 or not curve[0][0] <= value <= curve[-1][0]:
            return None
        means, steps = zip(*curve, strict=True)
        return float(np.interp(value, means, steps))

    @property
    def summary(self) -> str:
        """Some lines: what was searched, and what was found."""
        done, stopped = self.counts
        lines = [
            f"{counted(done + stopped, 'trial')}, {stopped} of them stopped early, in "
            f"{self.seconds:.0f} s; {counted(self.compiles[0], 'graph')} compiled in the first, "
            f"{self.compiles[1]} in all others"
        ]
        lines += [self._line(each) for each in self.found]
        lines += [f"{goal}: nothing that was tried reaches it" for goal in self.missed]
        if self.interrupted:
            lines.append("interrupted: nothing was measured on held-out seeds")
        return "\n".join(lines)

    def _line(self, found: Found) -> str:
        return (
            f"{found.goal}: {1 / found.cost:.2f}x at {self.metric.shown(found.value)}, "
            f"{table_text(found.schedule.rows, self.blocks)}"
        )

    def table(self) -> RichTable:
        """The methods on held-out seeds, the cheapest first."""
        table = RichTable(box=None, pad_edge=False)
        table.add_column("method", no_wrap=True)
        unit = f" in {self.metric.unit}" if self.metric.unit else ""
        headings = ["share", "speed-up", "s a batch", f"{self.metric.name}{unit}"]
        for heading in (*headings, f"{LEVEL} % interval", "as near as"):
            table.add_column(heading, justify="right", no_wrap=True)
        for each in sorted(self.measured, key=lambda m: (m.cost, m.name)):
            table.add_row(*map(Text, self._cells(each)), style=_style(each))
        return table

    def _cells(self, each: Measured) -> Iterator[str]:
        low, high = each.interval
        same = None if each.kind == PLAIN_STEPS else self.equivalent(each.mean)
        yield each.name
        yield f"{each.cost:.3f}"
        yield f"{1 / each.cost:.2f}x"
        yield f"{each.seconds:.2f}"
        digits = ".2f" if self.metric.unit else ".3g"
        yield f"{each.mean:{digits}}"
        yield f"{low:{digits}} to {high:{digits}}"
        yield "" if same is None else f"{same:.1f} plain steps"

    def to_dict(self) -> dict[str, Any]:
        """Plain values that JSON takes."""
        return {
            "unit": self.costs.unit,
            "plain_cost": self.costs.plain,
            "metric": self.metric.name,
            "trials": [list(each) for each in self.trials],
            "finished": self.counts[0],
            "stopped_early": self.counts[1],
            "compiles": list(self.compiles),
            "seconds": self.seconds,
            "interrupted": self.interrupted,
            "found": [
                {
                    "goal": each.goal,
                    "cost": each.cost,
                    "value": each.value,
                    "schedule": schedule_content(each.schedule),
                }
                for each in self.found
            ],
            "measured": [self._measured(each) for each in self.measured],
        }

    def _measured(self, each: Measured) -> dict[str, Any]:
        low, high = each.interval
        return {
            "name": each.name,
            "kind": each.kind,
            "steps": each.steps,
            "cost": each.cost,
            "seconds": each.seconds,
            "mean": each.mean,
            "interval": [low, high],
            "as_near_as_plain_steps": self.equivalent(each.mean),
            "values": list(each.values),
        }

    def __str__(self) -> str:
        return plain_text(self.__rich__(), NO_WRAP)

    def __rich__(self) -> Group:
        return Group(Text(self.summary), *([self.table()] if self.measured else []))


def bootstrap(values: Sequence[float]) -> tuple[float, float]:
    """The interval that holds the mean of as many values drawn again, LEVEL % of the times.

    The same for the same values: the draws are seeded.
    """
    given = np.asarray(values, dtype=np.float64)
    drawn = np.random.default_rng(0).integers(0, len(given), (RESAMPLES, len(given)))
    tail = (100 - LEVEL) / 2
    low, high = np.percentile(given[drawn].mean(1), (tail, 100 - tail))
    return float(low), float(high)


def _style(each: Measured) -> str:
    return "bold" if each.kind == FOUND else ""
