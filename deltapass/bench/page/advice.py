"""What should I use at which speed-up: the best row of those that are at least so quick.

Chosen by one measure and one kind of cost. Where the best of them is worse than a plain run of
about the same time, fewer steps are the advice. What cannot be told apart from it is named.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, final, get_args

import msgspec

from deltapass.bench.metrics.intervals import FEW
from deltapass.bench.page.shares import by_cost, share, usable
from deltapass.bench.record import Difference, Interval, Measure, Record, Row, Verdict

NEAR: Final = 1.1  # plain steps come in whole numbers: times within a tenth are about the same
VERDICTS: Final[tuple[Verdict, ...]] = get_args(Verdict)
TIERS: Final = (1.25, 1.5, 1.75, 2.0, 2.5, 3.0, 4.0, 5.0, 6.0, 8.0, 10.0)


@final
class Advice(msgspec.Struct, frozen=True, kw_only=True):
    """What to use where at least so much speed-up is wanted.

    Attributes:
        tier: The speed-up that is asked for, or more.
        row: Name of the row to use.
        passed_over: Name of a quicker row with that speed-up that is worse than fewer steps, which
            are `row` then.
        alike: Names of other rows with that speed-up which cannot be told from the best one.
    """

    tier: float
    row: str
    passed_over: str | None = None
    alike: tuple[str, ...] = ()


def advise(record: Record, cost: str, measure: Measure) -> tuple[Advice, ...]:
    """The advice at every tier that a row reaches; one advice for tiers of the same one."""
    found: list[Advice] = []
    for tier in TIERS:
        advice = advise_at(record, cost, measure, tier)
        if advice is None:
            break
        if found and (found[-1].row, found[-1].passed_over) == (advice.row, advice.passed_over):
            found.pop()  # the same row stands for the greater speed-up as well
        found.append(advice)
    return tuple(found)


def advise_at(record: Record, cost: str, measure: Measure, tier: float) -> Advice | None:
    """The advice at one tier; None if no row with a value is so quick."""
    quick = [
        row
        for row, cut in by_cost(record.rows, cost)
        if cut.mean * tier <= 1 and row.name != record.reference and value(row, measure)
    ]
    if not quick:
        return None
    best = max(quick, key=lambda row: _merit(row, measure))
    alike = tuple(row.name for row in quick if row is not best and is_alike(best, row, measure))
    pair = at_equal_time(best, measure)
    plain = named(record.rows, best.equal_time or "")
    if pair is not None and pair.verdict == "worse" and plain and _takes_as_long(plain, best, cost):
        return Advice(tier=tier, row=plain.name, passed_over=best.name, alike=alike)
    return Advice(tier=tier, row=best.name, alike=alike)


def value(row: Row, measure: Measure) -> Interval | None:
    """A row's mean that can be drawn."""
    found = row.means.get(measure.name)
    return found if usable(found) else None


def at_equal_time(row: Row, measure: Measure) -> Difference | None:
    """How a row stands against the plain run that takes no less time."""
    if row.equal_time is None:
        return None
    return row.against.get(row.equal_time, {}).get(measure.name)


def states_of(record: Record, row: Row) -> dict[Verdict, tuple[str, ...]]:
    """In which measures a row is what, against the plain run that takes no less time."""
    found: dict[Verdict, tuple[str, ...]] = {}
    for state in VERDICTS:
        names = tuple(
            each.name.replace("_", " ")
            for each in record.measures
            if (pair := at_equal_time(row, each)) is not None and pair.verdict == state
        )
        if names:
            found[state] = names
    return found


def is_alike(one: Row, other: Row, measure: Measure) -> bool:
    """Whether images cannot tell two rows apart: paired where that was done, else by intervals."""
    for first, second in ((one, other), (other, one)):
        pair = first.against.get(second.name, {}).get(measure.name)
        if pair is not None:
            return pair.verdict in ("same", "inconclusive")
    if 0 < len(one.values.get(measure.name, ())) < FEW:
        return True
    mine, theirs = one.means[measure.name], other.means[measure.name]
    return mine.low <= theirs.high and theirs.low <= mine.high


def front(record: Record, cost: str, measure: Measure) -> tuple[str, ...]:
    """Names of the rows that no other beats in both cost and quality, the quickest first."""
    names: list[str] = []
    best = float("-inf")
    rated = [(cut.mean, row) for row, cut in by_cost(record.rows, cost) if value(row, measure)]
    for _, row in sorted(rated, key=lambda pair: (pair[0], -_merit(pair[1], measure))):
        if _merit(row, measure) > best:
            best = _merit(row, measure)
            names.append(row.name)
    return tuple(names)


def speedup(row: Row, cost: str) -> float | None:
    """How many times quicker than the reference."""
    cut = share(row, cost)
    return None if cut is None else 1 / cut.mean


def named(rows: Sequence[Row], name: str) -> Row | None:
    """The row of that name, if the record has it."""
    return next((row for row in rows if row.name == name), None)


def _takes_as_long(plain: Row, row: Row, cost: str) -> bool:
    """Whether a plain run's time is about a row's: else it is no answer to who wants that speed."""
    mine, theirs = share(plain, cost), share(row, cost)
    return mine is not None and theirs is not None and mine.mean <= NEAR * theirs.mean


def _merit(row: Row, measure: Measure) -> float:
    mean = row.means[measure.name].mean
    return mean if measure.higher else -mean
