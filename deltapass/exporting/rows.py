"""The table of plan.json: what every step runs, what it reads, and by which weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import final

from msgspec.structs import replace

from deltapass.bundles.manifest import FitSpec, Row
from deltapass.exporting.chains import Chains
from deltapass.schedule.emissions import emissions, made_at
from deltapass.schedule.explicit import AnySchedule, ExplicitSchedule
from deltapass.schedule.predictors import chebyshev_basis, chebyshev_gains
from deltapass.schedule.rules import Span, Table
from deltapass.schedule.weights import Vectors, Weights


def rows_of(schedule: AnySchedule, table: Table, chains: Chains) -> tuple[Row, ...]:
    """One row a step of the planned trajectory, as a run in which no refresh is forced goes by it.

    Args:
        schedule: What is planned.
        table: Its rows, by the spans that are really skipped.
        chains: The variants by name, and how many streams a span has.

    Raises:
        ScheduleError: If a row has weights for another number of streams.
    """
    made = _Rows(schedule, chains, len(table))
    depths = schedule.depths(table)
    emitted, reads = emissions(table, depths), made_at(table, depths)
    rows: list[Row] = []
    for step, (span, spans, at) in enumerate(zip(table, emitted, reads, strict=True)):
        if span is None:
            fulls = [earlier for earlier in range(step, -1, -1) if emitted[earlier]]
            rows.append(made.refresh(sorted(spans), fulls))
        else:
            rows.append(made.cached(span, step, at))
    return tuple(rows)


@final
@dataclass(frozen=True)
class _Rows:
    schedule: AnySchedule
    chains: Chains
    steps: int

    def refresh(self, spans: Sequence[Span], fulls: Sequence[int]) -> Row:
        """A refresh; `fulls` are all that gave deltas so far, newest first, this one included."""
        name = self.chains.name("refresh", spans)
        fit = None
        if self.schedule.forecast.accumulates and spans:
            held = self.schedule.forecast.buffers(len(fulls) - 1)
            basis = chebyshev_basis(fulls[0], self.steps)[:held]
            fit = FitSpec(basis=tuple(basis), gains=chebyshev_gains(fulls, self.steps))
        return Row(variant=name, reads=(), weights=(), branches={}, fit=fit)

    def cached(self, span: Span, step: int, at: tuple[int, ...]) -> Row:
        """A cached step that reads the deltas of the refreshes `at`."""
        given, streams = self._given(step, span), self.chains.streams(span)
        branches: Mapping[str, Vectors] = {}
        if given is None:
            shared: Vectors = (self.schedule.forecast.weights(step, at, self.steps),) * streams
        else:
            shared = replace(given, branches=()).of("", streams)
            branches = {branch: given.of(branch, streams) for branch, _ in given.branches}
        return Row(
            variant=self.chains.name("cached", [span]),
            reads=at,
            weights=self._filled(shared),
            branches={branch: self._filled(vectors) for branch, vectors in branches.items()},
            fit=None,
        )

    def _given(self, step: int, span: Span) -> Weights | None:
        """The row's own weights; none where another span is skipped than they were fitted to."""
        schedule = self.schedule
        if not isinstance(schedule, ExplicitSchedule) or not schedule.weights:
            return None
        return schedule.weights[step] if schedule.rows[step] == span else None

    def _filled(self, vectors: Vectors) -> Vectors:
        """As long as the variants want them; none where these take no weights."""
        taken = self.schedule.taken
        if not taken:
            return ()
        longer = ((*map(float, vector), *[0.0] * taken) for vector in vectors)
        return tuple(vector[:taken] for vector in longer)
