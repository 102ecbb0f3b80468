"""What a candidate costs, known before it is run: from the cost of a step by the span it skips."""

from __future__ import annotations

import math
import statistics
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, final

from deltapass.schedule.rules import Span, Table
from deltapass.tuning.loops import Sampled

MACS, TIME = "macs", "milliseconds"
ROUNDING: Final = 1e-9  # a cost that equals a limit but for rounding keeps it


@final
@dataclass(frozen=True, kw_only=True)
class Costs:
    """Costs of whole trajectories, relative to the plain one.

    Attributes:
        unit: MACS or TIME.
        steps: Steps of the plain trajectory.
        full: A full step, in GMACs or milliseconds of one batch.
        spans: A step that skips a span, likewise.
        fixed: What a trajectory takes besides its steps: the sampler's own time, a decoder's.
    """

    unit: str
    steps: int
    full: float
    spans: Mapping[Span, float]
    fixed: float = 0.0

    @property
    def in_macs(self) -> bool:
        """Whether costs are MACs rather than measured times."""
        return self.unit == MACS

    @property
    def plain(self) -> float:
        """The plain trajectory, in the unit."""
        return self.fixed + self.steps * self.full

    def share(self, rows: Table) -> float:
        """A trajectory by a table, as a part of the plain one."""
        steps = math.fsum(self.full if row is None else self.spans[row] for row in rows)
        return (self.fixed + steps) / self.plain

    def plain_share(self, steps: int) -> float:
        """A plain trajectory of another number of steps."""
        return (self.fixed + steps * self.full) / self.plain

    def fits(self, rows: Table, most: float) -> bool:
        """Whether a trajectory costs no more than a share."""
        return self.share(rows) <= most * (1 + ROUNDING)


def costs_of(unit: str, runs: Sequence[Sampled]) -> Costs:
    """The costs that some runs show, in which every span was skipped.

    A step of several branches costs what all its calls do. Times are medians over the runs' steps.

    Args:
        unit: MACS or TIME.
        runs: Trajectories by `probing` tables, after one that compiled whatever there is.
    """
    found: dict[Span | None, list[float]] = defaultdict(list)
    for run in runs:
        for row, cost in _step_costs(unit, run):
            found[row].append(cost)
    median = {row: statistics.median(costs) for row, costs in found.items()}
    beside = [1e3 * run.seconds - run.report.milliseconds for run in runs]
    return Costs(
        unit=unit,
        steps=runs[0].steps,
        full=median.pop(None),
        spans={row: cost for row, cost in median.items() if row is not None},
        fixed=max(0.0, statistics.median(beside)) if unit == TIME else 0.0,
    )


def _step_costs(unit: str, run: Sampled) -> Iterator[tuple[Span | None, float]]:
    """What every step of a run skipped, and its cost."""
    steps: dict[tuple[int, int | None], float] = defaultdict(float)
    rows: dict[tuple[int, int | None], Span | None] = {}
    for entry in run.report.entries:
        place = entry.trajectory, entry.step
        rows[place] = entry.realised
        steps[place] += entry.macs.full / 1e9 if unit == MACS else entry.milliseconds
    yield from ((rows[place], cost) for place, cost in steps.items())


def probing(spans: Sequence[Span], steps: int, refreshes: int) -> Iterator[Table]:
    """Tables that between them skip every span, after as many refreshes as predictions read.

    Args:
        spans: The spans.
        steps: Steps of a trajectory.
        refreshes: Full steps at the start of each.
    """
    first = max(1, min(refreshes, steps - 1))
    room = steps - first
    for start in range(0, len(spans), max(1, room)):
        some = spans[start : start + room]
        rows = [some[at % len(some)] for at in range(room)]
        yield (*(None,) * first, *rows)
