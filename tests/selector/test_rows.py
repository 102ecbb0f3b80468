"""The rows of one model: each made once, and no more of them held than a server can need."""

from __future__ import annotations

import itertools
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from deltapass.errors import RefusalWarning
from deltapass.schedule.explicit import AnySchedule, ExplicitSchedule
from deltapass.schedule.presets import balanced
from deltapass.schedule.rules import Schedule, Span, Table
from deltapass.schedule.weights import Weights
from deltapass.selector import rows as module
from deltapass.selector.rows import Rows
from deltapass.sessions.deltas import Row

HALF = Schedule(cached_blocks=4)


class Repertoire:
    """Makes every variant that is asked for, and notes for which tables."""

    def __init__(self) -> None:
        self.prepared: list[Table] = []
        self.changed: dict[Span, Span | None] = {}

    def realised(self, table: Table) -> Table:
        return tuple(map(self.actual, table))

    def actual(self, span: Span | None) -> Span | None:
        return self.changed.get(span, span) if span is not None else None

    def prepare(self, table: Table, schedule: AnySchedule) -> None:
        self.prepared.append(table)

    def fitting(self, span: Span, taken: int) -> int:
        return taken

    def streams(self, span: Span) -> int:
        return 1


def made(schedule: AnySchedule = HALF) -> tuple[Rows, Repertoire]:
    model: Any = SimpleNamespace(schedule=schedule, blocks=8, caches=True)
    repertoire: Any = Repertoire()
    return Rows(model, repertoire), repertoire


def by_level(rows: Rows, step: int, level: float) -> Row:
    """The row of a step where the number of steps is unknown, but surely not small."""
    return rows.at_level(step, level)


def test_the_rows_of_a_schedule_are_made_once() -> None:
    rows, repertoire = made()
    first = rows.of(HALF, 20)
    assert rows.of(Schedule(cached_blocks=4), 20) is first
    assert [row.planned for row in first] == list(HALF.table(20, 8))
    assert len(repertoire.prepared) == 1


@pytest.mark.parametrize(
    ("schedule", "steps", "start"),
    [
        (HALF, 21, 0),
        (HALF, 20, 3),
        (Schedule(cached_blocks=3), 20, 0),
    ],
)
def test_another_schedule_length_or_start_has_rows_of_its_own(
    schedule: Schedule, steps: int, start: int
) -> None:
    rows, repertoire = made()
    assert rows.of(HALF, 20) != rows.of(schedule, steps, start)
    assert len(repertoire.prepared) == 2


def test_step_one_and_the_whole_trajectory_are_two_boundaries() -> None:
    rows, _ = made()
    by_step, whole = (rows.of(Schedule(cached_blocks=4, boundary=at), 20) for at in (1, 1.0))
    assert {row.planned for row in by_step} == {None, Span(0, 4)}
    assert {row.planned for row in whole} == {None, Span(4, 8)}


def test_one_block_and_the_whole_stack_are_two_schedules() -> None:
    rows, _ = made()
    one, whole = (rows.of(Schedule(cached_blocks=count), 20) for count in (1, 1.0))
    assert {row.planned for row in one} == {None, Span(7, 8), Span(0, 1)}
    assert {row.planned for row in whole} == {None, Span(0, 8)}


# Weights of the last row were fitted to the deltas of steps 2 and 1.
FITTED = ExplicitSchedule(
    (None, None, None, Span(4, 8), Span(0, 4)),
    "linear",
    (None, None, None, None, Weights(((2.5, -1.25),))),
)


def vectors_of(row: Row, at: tuple[int, ...]) -> list[list[float]]:
    assert row.weigh is not None
    return [weights.tolist() for weights in row.weigh(at, torch.device("cpu"))]


def test_weights_of_a_row_hold_for_the_refreshes_they_were_fitted_to() -> None:
    row = made(FITTED)[0].of(FITTED, 5)[4]
    assert vectors_of(row, (2, 1)) == [[2.5, -1.25]]
    assert vectors_of(row, (3, 2)) == [[2.0, -1.0]]  # linear: a refresh was forced at step 3


def test_weights_do_not_hold_where_another_span_could_not_be_cached() -> None:
    rows, repertoire = made(FITTED)
    repertoire.changed = {Span(4, 8): None}
    row = rows.of(FITTED, 5)[4]
    assert rows.of(FITTED, 5)[3].planned is None
    assert vectors_of(row, (3, 2)) == [[2.0, -1.0]]


def test_weights_do_not_hold_for_a_smaller_span() -> None:
    rows, repertoire = made(FITTED)
    repertoire.changed = {Span(0, 4): Span(0, 3)}
    row = rows.of(FITTED, 5)[4]
    assert row.planned == Span(0, 3)
    assert vectors_of(row, (2, 1)) == [[3.0, -2.0]]  # linear again


def test_a_trajectory_too_short_for_its_schedule_is_said_once() -> None:
    rows, _ = made(balanced())
    with pytest.warns(RefusalWarning, match="caches none of 3 steps") as said:
        for _ in range(2):
            rows.of(balanced(), 3)
    assert len(said) == 1
    rows.of(balanced(), 20)
    rows.of(balanced(), 20, 19)  # the end of a trajectory is no reason
    rows.of(Schedule(interval=1), 3)  # nor is a schedule that never caches


def test_no_more_tables_are_held_than_the_cap(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MANY_TABLES", 4)
    rows, repertoire = made()
    for _ in range(2):
        for steps in range(20, 24):  # as many as the cap: all stay
            rows.of(HALF, steps)
    assert len(repertoire.prepared) == 4
    for steps in range(24, 60):
        rows.of(HALF, steps)
        assert 1 <= len(rows._tables) <= 4
    assert rows.of(HALF, 20) == made()[0].of(HALF, 20)
    assert len(repertoire.prepared) == 41


def test_no_more_levels_are_held_than_the_cap(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MANY_LEVELS", 4)
    rows, _ = made(Schedule(cached_blocks=4))
    for step in range(60):
        row = by_level(rows, step, 1.0 - step / 60)
        assert row == by_level(rows, step, 1.0 - step / 60)
        assert 1 <= len(rows._levels) <= 4


@pytest.mark.parametrize(
    ("predictor", "interval"), [*itertools.product(["reuse", "linear"], [2, 3])]
)
def test_a_row_by_level_emits_what_the_steps_within_reach_could_read(
    predictor: str, interval: int
) -> None:
    rows, _ = made(Schedule(cached_blocks=4, interval=interval, predictor=predictor))
    early = by_level(rows, 0, 0.9)
    assert (early.planned, early.fresh_since) == (None, 0)
    assert early.emits == (Span(0, 4), Span(4, 8))  # either phase may have come by then
    cached = by_level(rows, interval + 1, 0.9)
    assert (cached.planned, cached.fresh_since) == (Span(4, 8), interval)
    assert by_level(rows, interval + 1, 0.1).planned == Span(0, 4)
    never, _ = made(Schedule(interval=1))
    assert by_level(never, 0, 0.9).emits == ()
