"""Schedules for a cost: Eq. 6 and 7 of the paper, in MACs of the real graph, not in blocks."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final, final

from deltapass.errors import OptionError, ScheduleError
from deltapass.schedule.checks import check_count
from deltapass.schedule.keeps import Keeps
from deltapass.schedule.rules import (
    Region,
    Schedule,
    Span,
    Table,
    check_fits,
    region_span,
)

# MACs of one step that skips a span, or of a full one for None.
StepMacs = Callable[[Span | None], float]
ROUNDING: Final = 1e-9  # a cost that equals the budget but for rounding keeps it


@final
@dataclass(frozen=True, kw_only=True, slots=True)
class Budget:
    """A schedule, Delta-DiT's by default, that is chosen once the costs of a model are known.

    `share` is the part of the plain trajectory's MACs that the cached one may cost, above 0.0 and
    up to 1.0; `boundary`, `predictor`, `keeps` and the regions are those of the schedule.

    Raises:
        OptionError: If the share lies outside.
        ScheduleError: If the boundary has a value that no trajectory could follow.
    """

    share: float
    boundary: int | float | None = None
    predictor: str = "reuse"
    outline: Region = "deep"
    detail: Region = "shallow"
    keeps: Keeps = "delta"

    def __post_init__(self) -> None:
        number = isinstance(self.share, int | float) and not isinstance(self.share, bool)
        if not number or not 0.0 < self.share <= 1.0:
            allowed = "a share of the plain model's MACs, above 0.0 and up to 1.0"
            raise OptionError("budget", self.share, allowed)
        self._schedule()

    @property
    def length(self) -> int | None:
        """None: the schedule it chooses fits trajectories of any length."""
        return None

    @property
    def needs_steps(self) -> bool:
        """Whether the number of steps must be known: what it costs depends on the boundary."""
        return isinstance(self.boundary, int) and self.outline != self.detail

    def check_steps(self, steps: int) -> None:
        """Raise BoundaryOutsideError if the boundary lies outside `steps` steps."""
        self._schedule().check_steps(steps)

    def choose(self, steps: int, blocks: int, step_macs: StepMacs) -> Schedule:
        """The schedule with the smallest interval, then the fewest blocks, that costs no more.

        The interval is that of Eq. 6, or the next larger one that meets the budget: Eq. 6 takes
        cached steps to be free.

        Args:
            steps: Steps of every trajectory, or those of one that stands for all.
            blocks: Blocks of the model.
            step_macs: MACs of a step, by the span it skips.

        Raises:
            ScheduleError: If not even one refresh and all blocks cached would meet the budget.

        Source:
            Eq. 6 and 7, with the MACs of the real graph in place of N_b * M_b.
        """
        most = self.share * steps * step_macs(None) * (1 + ROUNDING)
        if min(self._costs(steps, steps, blocks, step_macs)) > most:
            raise _out_of_reach(self.share, self.least(steps, blocks, step_macs))
        first = interval_for_budget(steps, step_macs(None), most)
        return next(
            self._schedule(interval, cached)
            for interval in range(first, steps + 1)
            for cached, cost in enumerate(self._costs(interval, steps, blocks, step_macs))
            if cost <= most
        )

    def least(self, steps: int, blocks: int, step_macs: StepMacs) -> float:
        """The least share that any schedule reaches; 1.0 where caching saves nothing.

        Args:
            steps: Steps of a trajectory.
            blocks: Blocks of the model.
            step_macs: MACs of a step, by the span it skips.
        """
        plain = steps * step_macs(None)
        return min(self._costs(steps, steps, blocks, step_macs)) / plain if plain else 1.0

    def _costs(
        self, interval: int, steps: int, blocks: int, step_macs: StepMacs
    ) -> Iterator[float]:
        """MACs of a trajectory under one interval, by the blocks cached, from none on."""
        yield steps * step_macs(None)
        # Which steps are full depends on no block, so that three of them stand for any number: the
        # regions of one cached block differ then, and one table serves every number of them.
        rule = self._schedule(interval, cached=1)
        rows = Counter(rule.table(steps, 3))
        full = rows[None] * step_macs(None)
        regions = dict.fromkeys((rule.outline, rule.detail))
        phases = [(r, rows[region_span(r, 1, 3, self.keeps)]) for r in regions]
        for cached in range(1, blocks + 1):
            spans = ((region_span(r, cached, blocks, self.keeps), runs) for r, runs in phases)
            yield full + math.fsum(runs * step_macs(span) for span, runs in spans if runs)

    def _schedule(self, interval: int = 2, cached: int | None = None) -> Schedule:
        return Schedule(
            interval=interval,
            cached_blocks=cached,
            boundary=self.boundary,
            predictor=self.predictor,
            outline=self.outline,
            detail=self.detail,
            keeps=self.keeps,
        )


def table_macs(table: Table, blocks: int, step_macs: StepMacs) -> float:
    """MACs of a whole trajectory.

    Args:
        table: What each step does.
        blocks: Blocks of the model.
        step_macs: MACs of a step, by the span it skips.

    Raises:
        SpanOutsideError: If a row skips blocks that the model does not have.
    """
    check_fits(table, blocks)
    macs = {row: step_macs(row) for row in set(table)}
    return math.fsum(macs[row] for row in table)


def interval_for_budget(steps: int, model_macs: float, budget: float) -> int:
    """The interval N whose refreshes alone would about use up the budget.

    Args:
        steps: Steps T of the trajectory.
        model_macs: MACs of one full step; the paper's N_b * M_b.
        budget: Wanted MACs of the whole trajectory.

    Raises:
        ScheduleError: If a cost is not above 0.

    Source:
        Eq. 6: N = ceil(T * N_b * M_b / M_g).
    """
    check_count("steps", steps, 1)
    for name, value in (("model_macs", model_macs), ("budget", budget)):
        if not 0.0 < value < math.inf:
            raise ScheduleError(f"{name} is {value!r}", "It must be a number of MACs above 0")
    # A ratio that is whole but for rounding must not be counted up to the next one.
    return max(1, math.ceil(steps * model_macs / budget - ROUNDING))


def _out_of_reach(share: float, least: float) -> ScheduleError:
    reached = math.ceil(least * 1000) / 1000
    return ScheduleError(
        f"a budget of {share:g} of the plain model's MACs is below {reached:g}, the least possible "
        "share: one refresh, and all blocks cached at every other step",
        f"Give a budget of at least {reached:g}, or sample more steps",
    )
