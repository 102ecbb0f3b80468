"""Where a row stands on an axis of cost: its time over the reference's, of one of three kinds."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Final

from deltapass.bench.record import Interval, Record, Row, Timing

END_TO_END, DENOISER, STEP, MACS = "end_to_end", "denoiser", "step", "macs"
APART: Final = ("solver", "weights")  # settings that make plain runs another model's, so to say
# In the order in which they are preferred. Multiply-accumulates are no time: the last resort.
COSTS: Final[Mapping[str, str]] = MappingProxyType(
    {
        END_TO_END: "Time, end to end",
        DENOISER: "Time in the denoiser",
        STEP: "Time of one call",
        MACS: "Multiply-accumulates (no time)",
    }
)


def timing(row: Row, cost: str) -> Timing | None:
    """What was timed of a row; None for multiply-accumulates and where nothing was."""
    return None if row.times is None or cost == MACS else getattr(row.times, cost)


def share(row: Row, cost: str) -> Interval | None:
    """A row's cost over the reference's, with the least and the greatest of all rounds."""
    if row.failure is not None:
        return None
    if cost == MACS:
        return None if row.macs is None else _exactly(row.macs.share)
    found = timing(row, cost)
    if found is None or not _usable(found.share):
        return None
    return Interval(mean=found.share, low=found.share_low, high=found.share_high)


def costs_of(record: Record) -> tuple[str, ...]:
    """The kinds of cost that at least two rows have, the best first."""
    return tuple(
        cost for cost in COSTS if sum(share(row, cost) is not None for row in record.rows) > 1
    )


def is_stable(row: Row, cost: str) -> bool:
    """Whether a row's time kept to the rule of stability; multiply-accumulates always do."""
    found = timing(row, cost)
    return found is None or found.stability == "stable"


def plain_curves(record: Record) -> tuple[tuple[str, ...], ...]:
    """Names of plain rows that differ by nothing but their steps, a group each, the fewest first.

    Runs of another lowering, solver or other weights are curves of their own.
    """
    groups: dict[tuple[str, ...], list[Row]] = {}
    for row in record.rows:
        if row.kind in ("plain", "steps"):
            key = (row.lowering, *(str(row.settings.get(name)) for name in APART))
            groups.setdefault(key, []).append(row)
    return tuple(
        tuple(row.name for row in sorted(rows, key=lambda row: row.steps))
        for rows in groups.values()
        if len(rows) > 1
    )


def usable(value: Interval | None) -> bool:
    """Whether a mean can be drawn: there, and finite."""
    return value is not None and math.isfinite(value.mean)


def by_cost(rows: Sequence[Row], cost: str) -> list[tuple[Row, Interval]]:
    """Rows that have a cost, with it, the quickest first."""
    found = [(row, cut) for row in rows if (cut := share(row, cost)) is not None]
    return sorted(found, key=lambda pair: pair[1].mean)


def _exactly(value: float) -> Interval | None:
    return Interval(mean=value, low=value, high=value) if _usable(value) else None


def _usable(value: float) -> bool:
    return math.isfinite(value) and value > 0
