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
    made_at,
    reads_after,
)
from deltapass.schedule.explicit import ExplicitSchedule
from deltapass.schedule.rules import Schedule, Span, Table

SPANS = (Span(2, 6), Span(0, 4), Span(1, 3))
# Not only tables that refresh first: a run that begins half-way is looked at too.
tables = st.lists(st.sampled_from([None, None, *SPANS]), max_size=24).map(tuple)


@st.composite
def given_tables(draw: st.DrawFn) -> tuple[Table, tuple[int, ...]]:
    """A table, and of how many refreshes each of its cached steps reads the deltas."""
    table = draw(tables)
    wanted = [draw(st.integers(1, 4)) for _ in table]
    return table, tuple(0 if row is None else d for row, d in zip(table, wanted, strict=True))


def refreshes_read(table: Table, depths: Sequence[int], step: int) -> list[int]:
    """The refreshes whose deltas a cached step reads, newest first."""
    before = [at for at in range(step) if table[at] is None]
    return before[::-1][: depths[step]]


def reads_by_definition(table: Table, depths: Sequence[int], step: int) -> dict[Span, int]:
    """By span, how many of the newest deltas made up to `step` later cached steps read."""
    reads: dict[Span, int] = {}
    for later in range(step + 1, len(table)):
        span = table[later]
        count = sum(at <= step for at in refreshes_read(table, depths, later))
        # Where there are fewer refreshes than are asked for, so many would be read.
        missing = depths[later] - len(refreshes_read(table, depths, later))
        if span is not None and count + missing > 0:
            reads[span] = max(reads.get(span, 0), count + missing)
    return reads


def held_by_definition(table: Table, depths: Sequence[int], step: int) -> dict[Span, int]:
    """By span, the deltas that were made up to `step` and are read later."""
    read: dict[Span, set[int]] = {}
    for later in range(step + 1, len(table)):
        span = table[later]
        if span is not None:
            made = {at for at in refreshes_read(table, depths, later) if at <= step}
            read.setdefault(span, set()).update(made)
    return {span: len(made) for span, made in read.items() if made}


@given(given_tables())
def test_every_step_has_the_reads_of_the_definition(given: tuple[Table, tuple[int, ...]]) -> None:
    table, depths = given
    read = [reads_by_definition(table, depths, step) for step in range(len(table))]
    assert list(reads_after(table, depths)) == read


@given(given_tables())
def test_refreshes_emit_what_is_read_after_them(given: tuple[Table, tuple[int, ...]]) -> None:
    table, depths = given
    for step, emitted in enumerate(emissions(table, depths)):
        readers = (
            table[later]
            for later in range(len(table))
            if table[later] is not None and step in refreshes_read(table, depths, later)
        )
        assert emitted == (set(readers) if table[step] is None else set())


@given(given_tables())
def test_deltas_are_held_as_by_definition(given: tuple[Table, tuple[int, ...]]) -> None:
    table, depths = given
    held = [held_by_definition(table, depths, step) for step in range(len(table))]
    assert list(held_deltas(table, depths)) == held


@given(given_tables())
def test_cached_steps_read_the_newest_refreshes(given: tuple[Table, tuple[int, ...]]) -> None:
    table, depths = given
    wanted = [tuple(refreshes_read(table, depths, step)) for step in range(len(table))]
    assert list(made_at(table, depths)) == [
        () if row is None else at for row, at in zip(table, wanted, strict=True)
    ]


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
        lambda table: reads_after(table, [2] * len(table)),
        lambda table: emissions(table, [2] * len(table)),
        lambda table: held_deltas(table, [2] * len(table)),
        fresh_since,
    ],
    ids=["reads_after", "emissions", "held_deltas", "fresh_since"],
)
def test_every_row_is_looked_at_a_few_times_only(work: Callable[[Any], object]) -> None:
    assert rows_seen(4000, work) <= 4 * rows_seen(1000, work) <= 4 * 5 * 1000


def test_rows_of_the_definition_are_counted_as_quadratic() -> None:
    def quadratic(table: Any) -> object:
        return [refreshes_read(table, [2] * len(table), step) for step in range(len(table))]

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
