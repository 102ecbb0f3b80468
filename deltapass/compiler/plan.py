"""Stage 4: outline + schedule -> which values each span's deltas are made of, and when.

Takes the outline and the spans of a schedule; gives, for each span, its residual streams and the
bytes its deltas take, or why it is not cached.
Source: Delta-Cache, Eq. 3; looking ahead over the boundary, docs/architecture.md.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Final, final

from deltapass.compiler.added_bodies import delta_dtype
from deltapass.compiler.addends import Addends
from deltapass.compiler.features import features_of_span
from deltapass.compiler.outline import Outline
from deltapass.compiler.seams import streams_of_span
from deltapass.compiler.streams import Stream
from deltapass.errors import (
    NoBlocksError,
    SmallSpanError,
    StreamError,
    UnsupportedGraphError,
)
from deltapass.graph.dead_calls import drop_dead_calls, without_outputs
from deltapass.graph.program import Program
from deltapass.schedule.emissions import held_deltas
from deltapass.schedule.explicit import AnySchedule
from deltapass.schedule.rules import REGIONS, Span, Table, region_span

LEAST_SHARE: Final = 0.01  # of the model's MACs: what saves less is not worth a wrong image


@final
@dataclass(frozen=True, kw_only=True, slots=True)
class SpanPlan:
    """A span that can be cached: what was wanted, what is possible, and its streams.

    `shrunk` says why `span` is smaller than `wanted`, and is None where it is not.
    """

    wanted: Span
    span: Span
    streams: tuple[Stream, ...]
    shrunk: StreamError | None = None

    @property
    def reason(self) -> str:
        """Why the span is smaller than wanted; empty where it is not."""
        return self.shrunk.fact if self.shrunk else ""

    @property
    def nbytes(self) -> int:
        """Bytes (not KiB) of one delta of every stream, in the types of deltas."""
        deltas = (replace(s.spec, dtype=delta_dtype(s.spec.dtype)) for s in self.streams)
        return sum(delta.nbytes for delta in deltas)


@final
@dataclass(frozen=True, kw_only=True)
class Plan:
    """How one outline is run under one schedule.

    Attributes:
        outline: The program and its blocks.
        schedule: Which span at which step.
        steps: Steps of a trajectory, where they are known.
        spans: Wanted span -> its plan.
        dropped: Wanted span -> why it cannot be cached; its steps refresh.
    """

    outline: Outline
    schedule: AnySchedule
    steps: int | None
    spans: Mapping[Span, SpanPlan]
    dropped: Mapping[Span, UnsupportedGraphError] = field(default_factory=dict)

    @property
    def blocks(self) -> int:
        """Number of blocks in the stack."""
        return len(self.outline.stack)

    def realised(self, table: Table) -> Table:
        """A table of wanted spans with what is really done: a smaller span, or a refresh."""
        done = {wanted: plan.span for wanted, plan in self.spans.items()}
        return tuple(None if row is None else done.get(row) for row in table)

    def buffer_bytes(self, table: Table | None = None) -> int:
        """Peak bytes the delta buffers of one branch hold, over a table or over all spans.

        The rows of a table are spans as they are cached, not as they were wanted.
        """
        nbytes = {plan.span: plan.nbytes for plan in self.spans.values()}
        if table is None:
            return sum(nbytes.values()) * max(1, self.schedule.taken)
        forecast = self.schedule.forecast
        sizes = (
            sum(
                nbytes[span] * (forecast.buffers(count) if forecast.accumulates else count)
                for span, count in held.items()
            )
            for held in held_deltas(table, self.schedule.depths(table))
        )
        return max(sizes, default=0)


def make_plan(
    outline: Outline,
    schedule: AnySchedule,
    *,
    steps: int | None = None,
    strict: bool = False,
) -> Plan:
    """Plan the spans of a schedule on the blocks that were found.

    Args:
        outline: The outlined model.
        schedule: Which span at which step.
        steps: Steps of a trajectory, if known.
        strict: Whether every span must be cached as the schedule wants it.

    Returns:
        The plan; `spans` is empty for a schedule that never caches.

    Raises:
        TooManyCachedBlocksError: If the schedule asks for more blocks than there are.
        StreamError, SmallSpanError: If no span of the schedule can be cached; with `strict` if
            one cannot be, or is smaller than wanted.
    """
    finder = SpanFinder(outline)
    spans: dict[Span, SpanPlan] = {}
    dropped: dict[Span, UnsupportedGraphError] = {}
    for wanted in schedule.spans(len(outline.stack), steps):
        try:
            spans[wanted] = finder.plan(wanted, strict=strict)
        except (StreamError, SmallSpanError) as error:
            if strict:
                raise
            dropped[wanted] = error
    if dropped and not spans:
        raise next(iter(dropped.values()))
    return Plan(outline=outline, schedule=schedule, steps=steps, spans=spans, dropped=dropped)


def plan_span(outline: Outline, wanted: Span) -> SpanPlan:
    """As `SpanFinder.plan`, for who asks about one span only."""
    return SpanFinder(outline).plan(wanted)


@final
class SpanFinder:
    """Finds which spans of one outline can be cached. Every span is looked at once."""

    def __init__(self, outline: Outline) -> None:
        self._outline = outline
        self._blocks = len(outline.stack)
        self._addends = Addends(outline.captured)
        self._seen: dict[Span, tuple[Stream, ...] | StreamError] = {}

    def plan(self, wanted: Span, *, strict: bool = False) -> SpanPlan:
        """The residual streams of a span, or of the largest smaller span that has them.

        Args:
            wanted: The span.
            strict: Whether no smaller span will do.

        Raises:
            StreamError: If no block of the span can be cached, or not all with `strict`; the error
                is that of the whole span, and its remedy names what can be.
            SmallSpanError: If skipping what can be cached would save next to nothing.
            NoBlocksError: If the span lies outside the stack.
        """
        if wanted.stop > self._blocks:
            found = f"{wanted} of a stack of {self._blocks}"
            raise NoBlocksError(self._outline.captured.operations, found)
        try:
            plan = SpanPlan(wanted=wanted, span=wanted, streams=self._streams(wanted))
        except StreamError as error:
            plan = self._smaller(wanted, error, strict=strict)
        if not self._is_worth_it(plan.span):
            raise SmallSpanError(str(plan.span), self._share(plan.span), self._remedy(None))
        return plan

    def _smaller(self, wanted: Span, whole: StreamError, *, strict: bool) -> SpanPlan:
        span = self._largest(wanted)
        if span is None or strict:
            raise whole.with_remedy(self._remedy(span)) from None
        return SpanPlan(wanted=wanted, span=span, streams=self._streams(span), shrunk=whole)

    def _streams(self, span: Span) -> tuple[Stream, ...]:
        if span not in self._seen:
            try:
                self._seen[span] = self._paired(span)
            except StreamError as error:
                self._seen[span] = error.with_traceback(None)
        found = self._seen[span]
        if isinstance(found, StreamError):
            raise found.with_traceback(None)
        return found

    def _paired(self, span: Span) -> tuple[Stream, ...]:
        captured, stack = self._outline.captured, self._outline.stack
        if span.is_feature:
            streams = features_of_span(captured, stack, span)
        elif span.is_cross_attention:
            streams = self._outline.cross_attentions.streams(captured, span, self._blocks)
        else:
            streams = streams_of_span(captured, stack, span, self._addends)
        for stream in streams:
            # An expanded view has no memory of its own to lay a sum out in.
            if 0 in stream.spec.stride:
                raise StreamError(str(span), stream.live_out, "is an expanded view")
        return streams

    def _largest(self, wanted: Span) -> Span | None:
        """The largest span within a span that can be cached."""
        for span in _within(wanted, self._blocks):
            with suppress(StreamError):
                self._streams(span)
                return span
        return None

    def _share(self, span: Span) -> float:
        """What skipping a span saves of the model's MACs, with attention; 1.0 where it has none."""
        total = self._outline.program.macs.full
        if span.keeps == "delta" or not total:
            return self._outline.share(span)
        return 1 - self._left(span).macs.full / total  # what only serves the span is saved too

    def _left(self, span: Span) -> Program:
        """What is left of the program where what is kept stands in for a span."""
        program = self._outline.program_for([span])
        given = {stream.live_out for stream in self._streams(span)}
        calls = tuple(without_outputs(call, given) for call in program.calls)
        return drop_dead_calls(replace(program, calls=calls))

    def _is_worth_it(self, span: Span) -> bool:
        return self._share(span) >= LEAST_SHARE

    def _remedy(self, span: Span | None) -> str:
        """How to ask for what can be cached: this span, else the largest of the whole stack."""
        span = span or self._largest(Span(0, self._blocks))
        if span is None or not self._is_worth_it(span):
            return "No other span of its blocks will do: run it without deltapass"
        for region in REGIONS:
            if region_span(region, len(span), self._blocks, span.keeps) == span:
                keeps = "" if span.keeps == "delta" else f", 'keeps': {span.keeps!r}"
                named = f"'schedule': 'delta-cache-{region}', 'cached_blocks': {len(span)}{keeps}"
                return f"{str(span).capitalize()} can be cached: give options={{{named}}}"
        keeps = "" if span.keeps == "delta" else f", {span.keeps!r}"
        where = f"deltapass.Span({span.start}, {span.stop}{keeps})"
        asked = f"a table (deltapass.ExplicitSchedule) of {where}"
        return f"{str(span).capitalize()} can be cached: give {asked}"


def _within(wanted: Span, blocks: int) -> Iterator[Span]:
    """All spans within one, the larger first; of one size, those at its own end of the stack."""
    shallow = wanted.start == 0 and wanted.stop < blocks
    for count in range(len(wanted), 0, -1):
        starts = range(wanted.start, wanted.stop - count + 1)
        for start in starts if shallow else reversed(starts):
            yield Span(start, start + count, wanted.keeps)
