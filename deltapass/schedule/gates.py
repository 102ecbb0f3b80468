"""A gate: the step from which on nothing refreshes any more, and noise levels in place of steps.

Source: TGATE, arXiv:2404.02747, whose gate is a step.
"""

from __future__ import annotations

from deltapass.errors import ScheduleError
from deltapass.schedule.checks import check_count, check_part

Gate = int | float | None


def check_gate(
    gate: Gate, intervals: object, max_consecutive: int | None, *, halves: object
) -> None:
    """Raise ScheduleError unless it is None, a step from 1 on or a fraction, and stands alone."""
    if not isinstance(halves, bool):
        raise ScheduleError(f"halves is {halves!r}", "It must be true or false")
    if gate is None:
        return
    check_part("gate", gate)
    if isinstance(gate, int):
        check_count("gate", gate, 1)
    if intervals != 2 or max_consecutive is not None:
        fact = "there is a gate, and an interval or a cap on cached steps"
        raise ScheduleError(fact, "Behind a gate no step refreshes: leave out the others")


def is_before(gate: Gate, index: int, level: float) -> bool:
    """Whether a step of a trajectory of unknown length lies before the gate, if there is one."""
    if gate is None:
        return False
    return index < gate if isinstance(gate, int) else is_above(level, gate)


def is_above(level: float, fraction: float) -> bool:
    """Whether a noise level, from 1.0 to 0.0, lies before a fraction of the trajectory.

    Levels come from float32 timesteps: the step that lies there must not count as just above.
    """
    return level > 1.0 - fraction + 1e-6
