"""What a schedule says of every step, resolved for one model: the rows that calls go by."""

from __future__ import annotations

import functools
from collections.abc import Hashable, Mapping
from dataclasses import replace
from typing import Final, NamedTuple, final

from deltapass.errors import StepUnknownError, warn
from deltapass.schedule.emissions import fresh_since, made_at, reads_after
from deltapass.schedule.explicit import AnySchedule, ExplicitSchedule
from deltapass.schedule.rules import Schedule, Span, Table
from deltapass.schedule.weights import Weights
from deltapass.selector.model import ModelInfo, Repertoire
from deltapass.selector.weighing import RowWeights, absorb
from deltapass.sessions.deltas import Absorb, Row
from deltapass.sessions.report import branch_label

SHARES: Final = ("boundary", "cached_blocks", "few_step_blocks")  # a number or a fraction
TOO_SHORT: Final = (
    "the schedule caches none of {} steps, which all run in full: it begins with more refreshes. "
    "The preset 'paper' caches from the second or third step on."
)
MANY_TABLES: Final = 256  # a server's clients may bring any number of schedules
MANY_LEVELS: Final = 4096  # steps at noise levels: image-to-image may start anywhere


@final
class Fitted(NamedTuple):
    """Weights of a row, and the refreshes at which its deltas are to be made, newest first."""

    weights: Weights
    planned: tuple[int, ...]


@final
class Rows:
    """The rows of one compiled model, each made once."""

    def __init__(self, model: ModelInfo, variants: Repertoire) -> None:
        self._model, self._variants = model, variants
        self._tables: dict[tuple[object, ...], tuple[Row, ...]] = {}
        self._levels: dict[tuple[int, float], Row] = {}

    def of(
        self, schedule: AnySchedule, steps: int, start: int = 0, branch: Hashable = None
    ) -> tuple[Row, ...]:
        """One row a step, where the number of steps is known; makes the variants they need.

        Args:
            schedule: What is planned.
            steps: Steps of the trajectory.
            start: The first that is run.
            branch: The branch, which may have weights of its own.

        Raises:
            ScheduleError: If the schedule does not fit the steps, the blocks or the streams.
        """
        own = branch_label(branch) if _by_branch(schedule) else ""
        key = (schedule, _kinds(schedule), steps, start, own)
        rows = self._tables.get(key)
        if rows is None:
            if len(self._tables) >= MANY_TABLES:
                self._tables.clear()
            rows = self._tables[key] = self._resolve(schedule, steps, start, own)
        return rows

    def _resolve(
        self, schedule: AnySchedule, steps: int, start: int, branch: str
    ) -> tuple[Row, ...]:
        wanted = schedule.table(steps, self._model.blocks, start)
        if isinstance(schedule, Schedule) and _is_too_short(schedule, wanted, start):
            warn(TOO_SHORT.format(steps))
        table = self._variants.realised(wanted)
        self._variants.prepare(table, schedule)  # now, at the first step, rather than in mid-run
        fitted, absorbing = self._fitted(schedule), _absorbing(schedule, steps)
        rows = []
        reads = reads_after(table, schedule.depths(table))
        parts = zip(table, reads, fresh_since(table), strict=True)
        for step, (span, keeps, fresh) in enumerate(parts):
            row = Row(span, tuple(sorted(keeps)), fresh, keeps, absorb=absorbing)
            row = replace(row, halves=_halves(schedule, span))
            rows.append(self._weighed(row, schedule, (step, steps), fitted.get(step), branch))
        return tuple(rows)

    def _weighed(
        self,
        row: Row,
        schedule: AnySchedule,
        place: tuple[int, int],
        fitted: Fitted | None = None,
        branch: str = "",
    ) -> Row:
        """A row with what gives the weights of its deltas, if the variant takes any."""
        if row.planned is None:
            return row
        taken = self._variants.fitting(row.planned, schedule.taken)
        if not taken:
            return row
        streams = self._variants.streams(row.planned)
        weigh = RowWeights(
            step=place[0],
            steps=place[1],
            taken=taken,
            streams=streams,
            predictor=schedule.forecast,
            planned=fitted.planned if fitted else (),
            fitted=fitted.weights.of(branch, streams) if fitted else None,
        )
        return replace(row, taken=taken, weigh=weigh)

    def _fitted(self, schedule: AnySchedule) -> Mapping[int, Fitted]:
        """The weights that a schedule's own rows carry, by step."""
        if not isinstance(schedule, ExplicitSchedule) or not schedule.weights:
            return {}
        # Where deltas were made is told by the schedule's own table: of it a run may leave out the
        # start, and a span that cannot be cached is a refresh more, to which nothing was fitted.
        made = made_at(schedule.rows, schedule.depths(schedule.rows))
        fitted = {}
        for step, (wanted, given, at) in enumerate(
            zip(schedule.rows, schedule.weights, made, strict=True)
        ):
            # Weights of another span's deltas are worth nothing here.
            if given is not None and self._variants.actual(wanted) == wanted:
                fitted[step] = Fitted(given, at)
        return fitted

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
        later = {span for span in spans if span is not None}
        past = range(step, -1, -1)
        row = Row(
            planned=self._span(step, level),
            emits=tuple(sorted(later)),
            fresh_since=next((at for at in past if self._span(at, level) is None), 0),
            keeps=dict.fromkeys(later, self._model.schedule.forecast.reads),
        )
        return self._weighed(row, self._model.schedule, (step, 0))

    def _span(self, step: int, level: float) -> Span | None:
        return self._variants.actual(self._model.schedule.at(step, level, self._model.blocks))

    def _reach(self) -> int:
        """How many steps ahead a cached step may read a delta emitted now."""
        longest = getattr(self._model.schedule, "longest", 1)
        return int(longest) * self._model.schedule.forecast.reads


def _is_too_short(schedule: Schedule, table: Table, start: int) -> bool:
    """Whether a whole trajectory of several steps is run in full, though the schedule caches."""
    return schedule.caches and start == 0 and len(table) > 1 and not any(table)


def _kinds(schedule: AnySchedule) -> tuple[type, ...]:
    """What tells 1 from 1.0, which are equal: one counts steps or blocks, the other is a share."""
    return tuple(type(getattr(schedule, name, None)) for name in SHARES)


def _by_branch(schedule: AnySchedule) -> bool:
    rows = schedule.weights if isinstance(schedule, ExplicitSchedule) else ()
    return any(weights is not None and weights.branches for weights in rows)


def _halves(schedule: AnySchedule, span: Span | None) -> bool:
    return span is not None and span.is_cross_attention and getattr(schedule, "halves", False)


def _absorbing(schedule: AnySchedule, steps: int) -> Absorb | None:
    return functools.partial(absorb, steps) if schedule.forecast.accumulates else None
