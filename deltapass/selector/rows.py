"""What a schedule says of every step, resolved for one model: the rows that calls go by."""

from __future__ import annotations

from typing import Final, final

from deltapass.errors import StepUnknownError
from deltapass.schedule.emissions import fresh_since, reads_after
from deltapass.schedule.explicit import AnySchedule
from deltapass.schedule.rules import Span
from deltapass.selector.model import ModelInfo, Repertoire
from deltapass.sessions.deltas import Row

MANY_TABLES: Final = 256  # a server's clients may bring any number of schedules
MANY_LEVELS: Final = 4096  # steps at noise levels: image-to-image may start anywhere


@final
class Rows:
    """The rows of one compiled model, each made once."""

    def __init__(self, model: ModelInfo, variants: Repertoire) -> None:
        self._model, self._variants = model, variants
        self._tables: dict[tuple[object, ...], tuple[Row, ...]] = {}
        self._levels: dict[tuple[int, float], Row] = {}

    def of(self, schedule: AnySchedule, steps: int, start: int = 0) -> tuple[Row, ...]:
        """One row a step, where the number of steps is known; makes the variants they need."""
        # 1 and 1.0 are equal, but as a boundary one is a step and the other a fraction.
        key = (schedule, type(getattr(schedule, "boundary", None)), steps, start)
        rows = self._tables.get(key)
        if rows is None:
            if len(self._tables) >= MANY_TABLES:
                self._tables.clear()
            rows = self._tables[key] = self._resolve(schedule, steps, start)
        return rows

    def _resolve(self, schedule: AnySchedule, steps: int, start: int) -> tuple[Row, ...]:
        table = self._variants.realised(schedule.table(steps, self._model.blocks, start))
        self._variants.prepare(table)  # now, at the first step, rather than in mid-run
        parts = zip(
            table,
            reads_after(table, self._model.order),
            fresh_since(table),
            strict=True,
        )
        return tuple(Row(span, tuple(sorted(reads)), at, reads) for span, reads, at in parts)

    def at_level(self, step: int, level: float) -> Row:
        """The row of a step on a trajectory of unknown length: phases by noise level.

        Raises:
            StepUnknownError: If the schedule needs the length.
        """
        if self._model.schedule.needs_steps:
            raise StepUnknownError("the schedule counts from the trajectory's length")
        row = self._levels.get((step, level))
        if row is None:
            if len(self._levels) >= MANY_LEVELS:
                self._levels.clear()
            row = self._levels[step, level] = self._resolve_at(step, level)
        return row

    def _resolve_at(self, step: int, level: float) -> Row:
        horizon = range(step + 1, step + 1 + self._reach())
        spans = {self._span(at, noise) for at in horizon for noise in (level, 0.0)}
        later = frozenset(span for span in spans if span is not None)
        past = range(step, -1, -1)
        return Row(
            planned=self._span(step, level),
            emits=tuple(sorted(later)),
            fresh_since=next((at for at in past if self._span(at, level) is None), 0),
            keeps=later,
        )

    def _span(self, step: int, level: float) -> Span | None:
        return self._variants.actual(self._model.schedule.at(step, level, self._model.blocks))

    def _reach(self) -> int:
        """How many steps ahead a cached step may read a delta emitted now."""
        interval = getattr(self._model.schedule, "interval", 1)
        return int(interval) * (self._model.order + 1)
