"""What a calibration found: the schedule with its weights, and how good every row is."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any, Final, final

from rich.console import Group as RichGroup
from rich.table import Table as RichTable
from rich.text import Text

from deltapass.errors import counted
from deltapass.schedule.explicit import ExplicitSchedule
from deltapass.schedule.files import row_text
from deltapass.schedule.rules import Span
from deltapass.sessions.report import NO_WRAP, plain_text

LITTLE: Final = 0.5  # relative error from which a prediction explains little of the delta


@final
@dataclass(frozen=True, kw_only=True, slots=True)
class RowFit:
    """One cached row, or one branch or stream of it that has weights of its own.

    Errors are norms of what the prediction misses, relative to the norm of the true delta.

    Attributes:
        step: Step of the trajectory, from 0.
        span: The blocks skipped.
        branch: The branch; None for all.
        stream: Number of the stream; None for all.
        made_at: Steps of the refreshes whose deltas are read, newest first.
        weights: What the schedule carries: the fitted ones, or the predictor's where these are
            nearer.
        predicted: Error of the predictor.
        fitted: Error of the fitted weights.
        unseen: Whether `fitted` is of weights fitted to other trajectories than those judged. The
            rows before were predicted with weights that all trajectories so far had a part in.
        kept: Whether the fitted weights are used.
    """

    step: int
    span: Span
    branch: str | None
    stream: int | None
    made_at: tuple[int, ...]
    weights: tuple[float, ...]
    predicted: float
    fitted: float
    unseen: bool
    kept: bool

    @property
    def error(self) -> float:
        """Error of the weights the schedule carries."""
        return self.fitted if self.kept else self.predicted


@final
@dataclass(frozen=True, kw_only=True, slots=True)
class Calibration:
    """A calibrated schedule, and what is known of it. Save it with `save_schedule`.

    Attributes:
        schedule: Rows, fitted weights, and what they were made for.
        rows: The errors of every cached row.
        samples: Seeds it was fitted on.
    """

    schedule: ExplicitSchedule
    rows: tuple[RowFit, ...]
    samples: int

    @property
    def weak(self) -> tuple[RowFit, ...]:
        """Rows whose prediction misses half of the delta or more."""
        return tuple(row for row in self.rows if row.error >= LITTLE)

    @property
    def summary(self) -> str:
        """One line: rows, samples, and the errors before and after, in the mean over rows."""
        steps = {row.step for row in self.rows}
        kept = {row.step for row in self.rows if row.kept}
        count = max(1, len(self.rows))
        before = sum(row.predicted for row in self.rows) / count
        after = sum(row.error for row in self.rows) / count
        unseen = "" if all(row.unseen for row in self.rows) else ", on the same trajectories"
        return (
            f"{counted(len(steps), 'row')} fitted to {counted(self.samples, 'sample')}: "
            f"relative error {100 * before:.1f} % by {self.schedule.predictor}, "
            f"{100 * after:.1f} % by fitted weights{unseen}; {counted(len(kept), 'row')} with these"
        )

    def table(self) -> RichTable:
        """A line a row; branches and streams only where they have weights of their own."""
        table, columns = RichTable(box=None, pad_edge=False), list(self._columns())
        for title, justify, _ in columns:
            table.add_column(title, justify=justify, no_wrap=True)
        for line in zip(*(cells for _, _, cells in columns), strict=True):
            table.add_row(*map(Text, line))
        return table

    def _columns(self) -> Iterator[tuple[str, Any, list[str]]]:
        rows = self.rows
        yield "step", "right", [str(row.step) for row in rows]
        yield "span", "left", [str(row.span) for row in rows]
        if any(row.branch is not None for row in rows):
            yield "branch", "left", [row.branch or "all" for row in rows]
        if any(row.stream is not None for row in rows):
            yield "stream", "right", ["all" if r.stream is None else str(r.stream) for r in rows]
        yield "deltas of", "left", [" ".join(map(str, row.made_at)) for row in rows]
        yield self.schedule.predictor, "right", [f"{100 * row.predicted:.1f} %" for row in rows]
        yield "fitted", "right", [f"{100 * row.fitted:.1f} %" for row in rows]
        yield "weights", "left", [" ".join(f"{w:+.3f}" for w in row.weights) for row in rows]
        yield "", "left", ["" if row.kept else "as predicted" for row in rows]

    def to_dict(self) -> dict[str, Any]:
        """Plain values that JSON takes; spans as in a schedule file."""
        blocks = self.schedule.made_for.blocks if self.schedule.made_for else 0
        rows = [asdict(row) | {"span": row_text(row.span, blocks)} for row in self.rows]
        return {"summary": self.summary, "samples": self.samples, "rows": rows}

    def to_json(self, indent: int | None = 2) -> str:
        """`to_dict` as JSON."""
        return json.dumps(self.to_dict(), indent=indent, allow_nan=False)

    def __str__(self) -> str:
        return plain_text(self.__rich__(), NO_WRAP)

    def __rich__(self) -> RichGroup:
        return RichGroup(Text(self.summary), self.table())
