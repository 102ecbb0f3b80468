"""Stages 5 and 6 on demand: the variants of one model, each rewritten and lowered once.

The variants a plan needs are made when the model is compiled; a session with another schedule
may ask for more. Bodies are shared, so a further variant costs a new list of calls and, where it
sums more deltas than any before, the compile of that sum (with fuse="whole" of the whole graph).
"""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, final

from deltapass.compiler.layouts import representatives, share_layouts
from deltapass.compiler.lowering import LoweredBodies
from deltapass.compiler.outline import Outline
from deltapass.compiler.plan import Plan, SpanFinder, SpanPlan
from deltapass.compiler.rewrite import cached_program, inline, refresh_program
from deltapass.errors import InternalError, SmallSpanError, StreamError, warn
from deltapass.graph.executable import Executable
from deltapass.graph.program import Call, Program
from deltapass.schedule.emissions import emissions
from deltapass.schedule.explicit import AnySchedule
from deltapass.schedule.rules import Span, Table

Key = tuple[str, tuple[Span, ...], int]  # kind, spans, weighted deltas a stream


@final
@dataclass
class Variants:
    """Makes and keeps the executable variants of one outline.

    `compiling` is entered while one is made, which may be in the middle of a run. With `strict`
    every span must be cached as it is wanted.
    """

    outline: Outline
    bodies: LoweredBodies
    whole: bool = False
    strict: bool = False
    _spans: dict[Span, SpanPlan | None] = field(default_factory=dict)
    _made: dict[Key, Executable] = field(default_factory=dict)
    compiling: Callable[[], AbstractContextManager[object]] = nullcontext
    _lock: Any = field(default_factory=threading.RLock)

    @property
    def key(self) -> tuple[object, ...]:
        """What besides the program decides what a delta is and how it lies in memory."""
        return self.bodies.name, self.whole

    def span(self, wanted: Span) -> SpanPlan | None:
        """The plan of a span, which may be smaller than wanted; None if it cannot be cached.

        Either is said once, by a warning that names the span.

        Raises:
            StreamError, SmallSpanError: With `strict`, instead of the warning.
        """
        if wanted not in self._spans:
            try:
                plan = self._finder.plan(wanted, strict=self.strict)
            except (StreamError, SmallSpanError) as error:
                if self.strict:
                    raise
                self._spans[wanted] = None
                warn(f"not caching {wanted}, steps that would skip it are full: {error}")
            else:
                self._spans[wanted] = self._spans[plan.span] = plan
                if plan.reason:
                    warn(f"caching {plan.span} instead of {plan.wanted}: {plan.reason}")
        return self._spans[wanted]

    @cached_property
    def _finder(self) -> SpanFinder:
        return SpanFinder(self.outline)

    def actual(self, wanted: Span | None) -> Span | None:
        """The span that is really skipped where a schedule wants one skipped; None: a refresh."""
        plan = self.span(wanted) if wanted is not None else None
        return plan.span if plan is not None else None

    def realised(self, table: Table) -> Table:
        """A table with every span replaced by the one that is really skipped."""
        return tuple(self.actual(span) for span in table)

    def _planned(self, span: Span) -> SpanPlan:
        plan = self.span(span)
        if plan is None:
            raise InternalError(f"a variant without {span}, which cannot be cached")
        return plan

    def streams(self, span: Span) -> int:
        """Number of residual streams over a span: its deltas."""
        return len(self._planned(span).streams)

    def shapes(self, span: Span) -> tuple[tuple[int, ...], ...]:
        """Shape of what is kept of each of these streams."""
        return tuple(stream.spec.shape for stream in self._planned(span).streams)

    def refresh(self, spans: Sequence[Span]) -> Executable:
        """The full model that also gives the deltas of `spans`."""
        return self._get(("refresh", tuple(spans), 0))

    def cached(self, span: Span, taken: int = 0) -> Executable:
        """The model without the blocks of `span`, by so many weighted deltas a stream."""
        return self._get(("cached", (span,), taken))

    def fitting(self, span: Span, taken: int) -> int:
        """The weighted deltas of a variant that serves for `taken`: one that is made, if any is.

        More buffers than are needed get weights of 0, so that no other schedule compiles again.
        """
        made = (k for kind, spans, k in list(self._made) if (kind, spans) == ("cached", (span,)))
        return min((k for k in made if k >= taken), default=taken)

    def _get(self, key: Key) -> Executable:
        return self._made.get(key) or self._make(key)

    def full(self) -> Executable:
        """A full variant that is made already, if there is one: it needs no lowering."""
        made = (variant for (kind, *_), variant in self._made.items() if kind == "refresh")
        return next(made, None) or self.refresh(())

    def warm_up(self, plan: Plan) -> None:
        """Make the variants the plan can ask for, so that no request waits for a compile.

        Stitched variants are free, so all are made. Whole ones each cost a compile: those of the
        known number of steps, or of noise levels where it is not known.
        """
        # In this order, as when one variant is made: else two threads may wait for each other.
        with self._lock, self.compiling(), self.bodies.together():
            self._warm_up(plan)

    def _warm_up(self, plan: Plan) -> None:
        for wanted in plan.dropped:
            self.span(wanted)
        spans = [self._planned(span).span for span in plan.spans]
        emitted = {frozenset(some) for n in range(3) for some in itertools.combinations(spans, n)}
        if self.whole and plan.steps is not None:
            table = self.realised(plan.schedule.table(plan.steps, plan.blocks))
            self.prepare(table, plan.schedule)
            return
        if self.whole:
            # Before the boundary either delta may be read next, after it only the last one's.
            emitted = {frozenset(spans), frozenset(spans[-1:])}
        for some in emitted:
            self.refresh(tuple(sorted(some)))
        for span in spans:
            self.cached(span, plan.schedule.taken)

    def prepare(self, table: Table, schedule: AnySchedule) -> None:
        """Make the variants that a schedule needs on a table of its realised spans."""
        depths = schedule.depths(table)
        for span, emitted in zip(table, emissions(table, depths), strict=True):
            if span is None:
                self.refresh(tuple(sorted(emitted)))
            else:
                self.cached(span, self.fitting(span, schedule.taken))

    def program(self, key: Key) -> Program:
        """The rewritten program of a variant."""
        kind, spans, taken = key
        plans = [self._planned(span) for span in spans]
        whole = self.outline.program_for(plan.span for plan in plans)
        if kind == "cached":
            made = cached_program(whole, plans[0], taken)
        else:
            made = refresh_program(whole, plans)
        if self.bodies.lowering.exact or self.whole:
            return made
        return share_layouts(made, representatives(whole))

    def _make(self, key: Key) -> Executable:
        with self._lock, self.compiling():
            if key not in self._made:
                program = self.program(key)
                program = fused(program) if self.whole else program
                self._made[key] = Executable(program, self.bodies.get)
            return self._made[key]


def fused(program: Program) -> Program:
    """The program as one call of one body."""
    body = inline(program)
    names = (*program.value_results, *program.deltas)
    call = Call(label="whole", body=body, inputs=program.inputs, outputs=names)
    return replace(program, calls=(call,))
