"""Schedules for a cost: Eq. 6 and 7 of the paper, in MACs of the real graph, not in blocks."""

from __future__ import annotations

import math
from collections.abc import Sequence

from deltapass.errors import ScheduleError
from deltapass.schedule.rules import Schedule, Span, Table, check_count, check_fits


def table_macs(table: Table, block_macs: Sequence[float], other_macs: float = 0.0) -> float:
    """Cost of a whole trajectory.

    Args:
        table: What each step does.
        block_macs: MACs of each block, in the order of the stack.
        other_macs: MACs before and after the stack, paid at every step.

    Returns:
        MACs, summed over all steps.

    Raises:
        TooManyCachedBlocksError: If a row skips blocks beyond `block_macs`.
    """
    check_fits(table, len(block_macs))
    cost: dict[Span | None, float] = {None: math.fsum([*block_macs, other_macs])}
    for span in {row for row in table if row is not None}:
        kept = (*block_macs[: span.start], *block_macs[span.stop :], other_macs)
        cost[span] = math.fsum(kept)
    return math.fsum(cost[row] for row in table)


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
    return max(1, math.ceil(steps * model_macs / budget - 1e-9))


def schedule_for_budget(
    budget: float,
    steps: int,
    block_macs: Sequence[float],
    other_macs: float = 0.0,
    interval: int | None = None,
) -> Schedule:
    """The Delta-DiT schedule that caches the fewest blocks and stays within a budget.

    Args:
        budget: MACs the whole trajectory may cost.
        steps: Steps of the trajectory.
        block_macs: MACs of each block; they may differ.
        other_macs: MACs before and after the stack, paid at every step.
        interval: Interval N; Eq. 6 chooses it when None.

    Raises:
        ScheduleError: If the interval cannot reach the budget with all blocks cached.

    Source:
        Eq. 6 and 7, with the MACs of the real graph in place of N_b * M_b.
    """
    n = interval
    if n is None:
        n = interval_for_budget(steps, math.fsum([*block_macs, other_macs]), budget)
    cost = math.inf
    for cached in range(len(block_macs) + 1):
        schedule = Schedule(interval=n, cached_blocks=cached)
        cost = table_macs(schedule.table(steps, len(block_macs)), block_macs, other_macs)
        if cost <= budget:
            return schedule
    fact = f"a budget of {budget:g} MACs for {steps} steps is below the {cost:g} MACs"
    remedy = "Raise the budget, sample fewer steps, or give a larger interval"
    raise ScheduleError(f"{fact} that interval {n} reaches with every block cached", remedy)
