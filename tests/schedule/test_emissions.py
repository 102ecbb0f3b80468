"""schedule/emissions.py: the same as by definition, and in linear time."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any, overload

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deltapass.schedule.emissions import (
    emissions,
    fresh_since,
    held_deltas,
    reads_after,
    weight_of_trend,
)
from deltapass.schedule.explicit import ExplicitSchedule
from deltapass.schedule.rules import Schedule, Span, Table

SPANS = (Span(2, 6), Span(0, 4), Span(1, 3))
# Not only tables that refresh first: a run that begins half-way is looked at too.
tables = st.lists(st.sampled_from([None, None, *SPANS]), max_size=24).map(tuple)
orders = st.integers(0, 3)


def by_definition(table: Table, step: int, order: int) -> frozenset[Span]:
    """Spans of the cached steps after `step`, up to refresh number `order` + 1 after it."""
    read: set[Span] = set()
    refreshes = 0
    for span in table[step + 1 :]:
        if span is not None:
            read.add(span)
            continue
        refreshes += 1
        if refreshes > order:
            break
    return frozenset(read)


def held_by_definition(table: Table, order: int) -> list[dict[Span, int]]:
    held: dict[Span, int] = {}
    after = []
    for step, row in enumerate(table):
        for span in by_definition(table, step, order) if row is None else ():
            held[span] = min(order + 1, held.get(span, 0) + 1)
        read = by_definition(table, step, order)
        held = {span: count for span, count in held.items() if span in read}
        after.append(dict(held))
    return after


@given(table=tables, order=orders)
def test_every_step_has_the_reads_of_the_definition(table: Table, order: int) -> None:
    read = [by_definition(table, step, order) for step in range(len(table))]
    assert list(reads_after(table, order)) == read


@given(table=tables, order=orders)
def test_refreshes_emit_what_is_read_after_them(table: Table, order: int) -> None:
    assert list(emissions(table, order)) == [
        by_definition(table, step, order) if row is None else frozenset()
        for step, row in enumerate(table)
    ]


@given(table=tables, order=orders)
def test_deltas_are_held_as_by_definition(table: Table, order: int) -> None:
    assert list(held_deltas(table, order)) == held_by_definition(table, order)


@given(table=tables)
def test_deltas_are_fresh_since_the_last_refresh(table: Table) -> None:
    assert list(fresh_since(table)) == [
        max((at for at in range(step + 1) if table[at] is None), default=0)
        for step in range(len(table))
    ]


# ---- linear time -------------------------------------------------------------------------------


class Counted(Sequence[Span | None]):
    """A table that counts how many of its rows were looked at or copied."""

    def __init__(self, rows: Table) -> None:
        self.rows, self.seen = rows, 0

    def __len__(self) -> int:
        return len(self.rows)

    @overload
    def __getitem__(self, at: int) -> Span | None: ...
    @overload
    def __getitem__(self, at: slice) -> Table: ...
    def __getitem__(self, at: int | slice) -> Any:
        self.seen += len(self.rows[at]) if isinstance(at, slice) else 1
        return self.rows[at]


def rows_seen(steps: int, work: Callable[[Any], object]) -> int:
    table = Counted(Schedule(interval=3).table(steps, 28))
    work(table)
    return table.seen


@pytest.mark.parametrize(
    "work",
    [
        lambda table: reads_after(table, 1),
        lambda table: emissions(table, 1),
        lambda table: held_deltas(table, 1),
        fresh_since,
    ],
    ids=["reads_after", "emissions", "held_deltas", "fresh_since"],
)
def test_every_row_is_looked_at_a_few_times_only(work: Callable[[Any], object]) -> None:
    assert rows_seen(4000, work) <= 4 * rows_seen(1000, work) <= 4 * 5 * 1000


def test_rows_of_the_definition_are_counted_as_quadratic() -> None:
    def quadratic(table: Any) -> object:
        return [by_definition(table, step, 1) for step in range(len(table))]

    assert rows_seen(400, quadratic) > 12 * rows_seen(100, quadratic)


@pytest.mark.parametrize("work", [Schedule(interval=3).table, None], ids=["rules", "explicit"])
def test_tables_of_many_steps_are_made_in_linear_time(
    work: Callable[[int, int], Table] | None,
) -> None:
    def seconds(steps: int) -> float:
        table = work or ExplicitSchedule((None,) * steps).table
        started = time.perf_counter()
        table(steps, 28)
        return time.perf_counter() - started

    least = [min(seconds(steps) for _ in range(9)) for steps in (1000, 4000)]
    assert least[1] < 9 * least[0], f"{least[1] / least[0]:.1f} times as long for 4 times the steps"


@pytest.mark.parametrize(
    ("step", "newest", "before", "weight"),
    [(3, 2, 0, 0.5), (8, 6, 2, 0.5), (5, 4, 1, 1 / 3), (11, 8, 5, 1.0), (12, 8, 5, 4 / 3)],
)
def test_the_trend_goes_by_the_steps_between_the_refreshes(
    step: int, newest: int, before: int, weight: float
) -> None:
    assert weight_of_trend(step, newest, before) == weight
    assert weight_of_trend(step, newest, newest) == 0.0  # one delta only: order 0
