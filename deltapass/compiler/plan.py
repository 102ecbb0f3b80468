"""Stage 4: outline + schedule -> which values each span's deltas are made of, and when.

Takes the outline and the spans of a schedule; gives, for each span, its residual streams and the
bytes its deltas take, and for each step of a trajectory the deltas a refresh must emit.
Source: Delta-Cache, Eq. 3; looking ahead over the boundary, docs/architecture.md.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import final

from deltapass.compiler.added_bodies import delta_dtype
from deltapass.compiler.addends import Addends
from deltapass.compiler.outline import Outline
from deltapass.compiler.seams import streams_of_span
from deltapass.compiler.streams import Stream
from deltapass.errors import NoBlocksError, StreamError
from deltapass.schedule.emissions import held_deltas
from deltapass.schedule.rules import AnySchedule, Span, Table


@final
@dataclass(frozen=True, kw_only=True, slots=True)
class SpanPlan:
    """A span that can be cached: what was wanted, what is possible, and its streams.

    `reason` says why `span` is smaller than `wanted`, and is empty where it is not.
    """

    wanted: Span
    span: Span
    streams: tuple[Stream, ...]
    reason: str = ""

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
        order: Order of the delta prediction (0: the last delta; 1: linear extrapolation).
        steps: Steps of a trajectory, where they are known.
        spans: Wanted span -> its plan.
    """

    outline: Outline
    schedule: AnySchedule
    order: int
    steps: int | None
    spans: Mapping[Span, SpanPlan]

    @property
    def blocks(self) -> int:
        """Number of blocks in the stack."""
        return len(self.outline.stack)

    def buffer_bytes(self, table: Table | None = None) -> int:
        """Peak bytes the delta buffers of one branch hold, over a table or over all spans.

        The rows of a table are spans as they are cached, not as they were wanted.
        """
        if table is None:
            return sum(plan.nbytes for plan in self.spans.values()) * (self.order + 1)
        nbytes = {plan.span: plan.nbytes for plan in self.spans.values()}
        sizes = (
            sum(nbytes[span] * count for span, count in held.items())
            for held in held_deltas(table, self.order)
        )
        return max(sizes, default=0)


def make_plan(
    outline: Outline, schedule: AnySchedule, *, order: int = 0, steps: int | None = None
) -> Plan:
    """Plan the spans of a schedule on the blocks that were found.

    Args:
        outline: The outlined model.
        schedule: Which span at which step.
        order: Order of the delta prediction.
        steps: Steps of a trajectory, if known.

    Returns:
        The plan; `spans` is empty for a schedule that never caches.

    Raises:
        TooManyCachedBlocksError: If the schedule asks for more blocks than there are.
        StreamError: If not even one block of a wanted span can be cached.
    """
    wanted = schedule.spans(len(outline.stack), steps)
    addends = Addends(outline.captured)
    spans = {span: plan_span(outline, span, addends) for span in wanted}
    return Plan(outline=outline, schedule=schedule, order=order, steps=steps, spans=spans)


def plan_span(outline: Outline, wanted: Span, addends: Addends | None = None) -> SpanPlan:
    """Find the residual streams of a span, or of the largest smaller span that has them.

    Args:
        outline: The outlined model.
        wanted: The span.
        addends: Those of the graph, for who asks about many spans of it.

    Raises:
        StreamError: If no block of the span can be cached; the error is that of the whole span.
        NoBlocksError: If the span lies outside the stack.
    """
    blocks = len(outline.stack)
    if wanted.stop > blocks:
        raise NoBlocksError(outline.captured.operations, f"{wanted} of a stack of {blocks}")
    addends = addends or Addends(outline.captured)
    span: Span | None = wanted
    first: StreamError | None = None
    while span is not None:
        try:
            streams = _streams(outline, span, addends)
        except StreamError as error:
            first = first or error
            span = _shrink(span, blocks)
        else:
            reason = first.fact if first else ""
            return SpanPlan(wanted=wanted, span=span, streams=streams, reason=reason)
    raise first or NoBlocksError(outline.captured.operations, f"{wanted} is empty")


def _streams(outline: Outline, span: Span, addends: Addends) -> tuple[Stream, ...]:
    streams = streams_of_span(outline.captured, outline.stack, span, addends)
    for stream in streams:
        # An expanded view has no memory of its own to lay a sum out in.
        if 0 in stream.spec.stride:
            raise StreamError(str(span), stream.live_out, "is an expanded view")
    return streams


def _shrink(span: Span, blocks: int) -> Span | None:
    """One block less, taken from the side that lies inside the stack."""
    if len(span) == 1:
        return None
    if span.start == 0 and span.stop < blocks:
        return Span(span.start, span.stop - 1)
    return Span(span.start + 1, span.stop)
