"""Schedules for a cost: Eq. 6 and 7 of the paper, in MACs of the real graph, not in blocks."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final, final

from deltapass.errors import OptionError, ScheduleError
from deltapass.schedule.rules import (
    Schedule,
    Span,
    Table,
    check_count,
    check_fits,
    unknown_length,
)

# MACs of one step that skips a span, or of a full one for None.
StepMacs = Callable[[Span | None], float]
LONG: Final = 840  # steps; every interval up to 8 divides it, so that no steps are left over
ROUNDING: Final = 1e-9  # a cost that equals the budget but for rounding keeps it


@final
@dataclass(frozen=True, kw_only=True, slots=True)
class Budget:
    """A Delta-DiT schedule that is chosen once the costs of a model are known.

    `share` is the part of the plain trajectory's MACs that the cached one may cost, above 0.0 and
    up to 1.0; `boundary` is that of the schedule.

    Raises:
        OptionError: If the share lies outside.
        ScheduleError: If the boundary has a value that no trajectory could follow.
    """

    share: float
    boundary: int | float | None = None

    def __post_init__(self) -> None:
        number = isinstance(self.share, int | float) and not isinstance(self.share, bool)
        if not number or not 0.0 < self.share <= 1.0:
            allowed = "a share of the plain model's MACs, above 0.0 and up to 1.0"
            raise OptionError("budget", self.share, allowed)
        self._schedule()

    def check_steps(self, steps: int) -> None:
        """Raise BoundaryOutsideError if the boundary lies outside `steps` steps."""
        self._schedule().check_steps(steps)

    def choose(self, steps: int | None, blocks: int, step_macs: StepMacs) -> Schedule:
        """The schedule with the smallest interval, then the fewest blocks, that costs no more.

        The interval is that of Eq. 6, or the next larger one that meets the budget: Eq. 6 takes
        cached steps to be free. Where `steps` is None a long trajectory stands for all; one whose
        length the interval does not divide costs more by its left-over full steps.

        Args:
            steps: Steps of every trajectory, if known.
            blocks: Blocks of the model.
            step_macs: MACs of a step, by the span it skips.

        Raises:
            ScheduleError: If not even one refresh and all blocks cached would meet the budget, or
                if the boundary is a step and the number of steps is not known.

        Source:
            Eq. 6 and 7, with the MACs of the real graph in place of N_b * M_b.
        """
        if steps is None and isinstance(self.boundary, int):
            raise unknown_length("its budget depends on where the boundary lies")
        length = steps or LONG
        plain = length * step_macs(None)
        most = self.share * plain * (1 + ROUNDING)

        def cost(schedule: Schedule) -> float:
            return table_macs(schedule.table(length, blocks), blocks, step_macs)

        least = min(cost(schedule) for schedule in self._choices(length, blocks))
        if least > most:
            raise _out_of_reach(self.share, least / plain)
        first = interval_for_budget(length, step_macs(None), most)
        return next(
            schedule
            for interval in range(first, length + 1)
            for schedule in self._choices(interval, blocks)
            if cost(schedule) <= most
        )

    def _choices(self, interval: int, blocks: int) -> Iterator[Schedule]:
        """The schedules of one interval, by the blocks they cache."""
        return (self._schedule(interval, cached) for cached in range(blocks + 1))

    def _schedule(self, interval: int = 2, cached: int | None = None) -> Schedule:
        return Schedule(interval=interval, cached_blocks=cached, boundary=self.boundary)


def table_macs(table: Table, blocks: int, step_macs: StepMacs) -> float:
    """MACs of a whole trajectory.

    Args:
        table: What each step does.
        blocks: Blocks of the model.
        step_macs: MACs of a step, by the span it skips.

    Raises:
        TooManyCachedBlocksError: If a row skips blocks that the model does not have.
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
