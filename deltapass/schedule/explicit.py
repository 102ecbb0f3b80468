"""Schedules given row by row: what a person writes, a search finds or a calibration fits."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import final

from deltapass.errors import ScheduleError, StepCountError
from deltapass.schedule.checks import check_count, unknown_length
from deltapass.schedule.keeps import Keeps
from deltapass.schedule.made_for import MadeFor
from deltapass.schedule.predictors import Predictor, predictor_named
from deltapass.schedule.rules import Schedule, Span, Table, check_fits, distinct
from deltapass.schedule.weights import Weights


@final
@dataclass(frozen=True, slots=True)
class ExplicitSchedule:
    """A schedule given row by row, for one number of steps; row 0 refreshes.

    `weights` has one entry a step, or none at all: the weights of a cached row's newest deltas,
    which hold where these were made at the planned steps. Elsewhere, and in rows without, the
    `predictor` of that name forecasts. `made_for` says what the weights were fitted to. A
    row's span says whether its delta or its feature is kept.

    Raises:
        ScheduleError: If the rows or the weights cannot be used.
    """

    rows: Table
    predictor: str = "reuse"
    weights: tuple[Weights | None, ...] = ()
    made_for: MadeFor | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.rows, tuple) or not self.rows:
            raise ScheduleError(f"rows is {self.rows!r}", "Give a tuple with one row a step")
        for step, row in enumerate(self.rows):
            if row is not None and not isinstance(row, Span):
                raise ScheduleError(f"row {step} is {row!r}", "A row is None or a Span")
        if self.rows[0] is not None:
            raise ScheduleError(f"row 0 skips {self.rows[0]}", "The first step must refresh")
        self._check_weights()

    def _check_weights(self) -> None:
        if self.forecast.accumulates and any(self.weights):
            raise ScheduleError(
                f"rows have weights, and the predictor {self.predictor!r} keeps no deltas",
                "Name a predictor that reads the newest deltas, such as 'linear'",
            )
        if self.weights and len(self.weights) != len(self.rows):
            fact = f"there are weights for {len(self.weights)} steps, and {len(self.rows)} rows"
            raise ScheduleError(fact, "Give one entry a row, None where it refreshes")
        made = 0
        for step, (row, weights) in enumerate(zip(self.rows, self.weights, strict=False)):
            made += row is None
            if weights is None:
                continue
            if row is None:
                fact = f"row {step} refreshes and has weights"
                raise ScheduleError(fact, "Leave out the weights of refreshes")
            if weights.depth > made:
                fact = f"row {step} weighs {weights.depth} deltas, and {made} refreshes come before"
                raise ScheduleError(fact, "Give no more weights than there are refreshes")

    @property
    def needs_steps(self) -> bool:
        """True: a table fits one length only."""
        return True

    @property
    def length(self) -> int | None:
        """Steps of the trajectories it fits."""
        return len(self.rows)

    @property
    def few_step_defaults(self) -> bool:
        """False: nothing is left to defaults."""
        return False

    @property
    def has_boundary(self) -> bool:
        """False: a table has rows instead."""
        return False

    @property
    def forecast(self) -> Predictor:
        """How deltas are forecast where no weights are given, or where they do not hold."""
        return predictor_named(self.predictor)

    @property
    def taken(self) -> int:
        """Weighted deltas a stream that a cached variant takes; 0: the newest, unweighted."""
        return max((self.forecast.taken, *(w.depth for w in self.weights if w is not None)))

    def depths(self, table: Table) -> tuple[int, ...]:
        """Of how many of the newest refreshes each step of a table reads the deltas."""
        reads = self.forecast.reads
        given = [reads if w is None else w.depth for w in self.weights]
        given = given or [reads] * len(table)
        return tuple(0 if row is None else d for row, d in zip(table, given, strict=True))

    def keeping(self, keeps: Keeps) -> ExplicitSchedule:
        """The same rows, with their deltas or their features kept.

        Raises:
            ScheduleError: If that changes a row, and there are weights fitted to what it kept.
        """
        rows = tuple(None if row is None else Span(row.start, row.stop, keeps) for row in self.rows)
        if rows != self.rows and any(self.weights):
            fact = f"the schedule's weights are not fitted to a {keeps}"
            raise ScheduleError(fact, f"Leave out 'keeps': {keeps!r}, or the weights")
        return replace(self, rows=rows)

    def check_steps(self, steps: int) -> None:
        """Raise StepCountError unless the table has `steps` rows."""
        check_count("steps", steps, 1)
        if len(self.rows) != steps:
            raise StepCountError(len(self.rows), steps)

    def table(self, steps: int, blocks: int, start: int = 0) -> Table:
        """The rows, once they are known to fit; row `start`, where a run begins, refreshes.

        Raises:
            StepCountError: If the table has not `steps` rows.
            SpanOutsideError: If a row skips blocks that the model does not have.
            ScheduleError: If it was made for a model of another number of blocks.
        """
        self.check_steps(steps)
        if self.made_for is not None:
            self.made_for.check_blocks(blocks)
        check_fits(self.rows, blocks)
        return (*self.rows[:start], None, *self.rows[start + 1 :])

    def at(self, index: int, level: float, blocks: int) -> Span | None:
        """Raise ScheduleError: a table needs the number of steps."""
        raise unknown_length(f"step {index} of {len(self.rows)} at noise level {level:g}")

    def spans(self, blocks: int, steps: int | None = None) -> tuple[Span, ...]:
        """The distinct spans of the rows, in the order of their first use."""
        return distinct(self.table(len(self.rows) if steps is None else steps, blocks))


AnySchedule = Schedule | ExplicitSchedule
