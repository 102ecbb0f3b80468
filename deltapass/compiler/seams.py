"""Stage 2, last part: the streams of a span of a stack, over seams too.

A seam is where streams are laid out anew between two blocks: two are concatenated into one, or one
is cut. What lies there is cheap, and no delta reaches over it:

    image, text = block_0(image, text)
    joined = cat(text, image)
    joined = block_1(joined)

So the parts of a span between seams each have their own deltas, and a cached step runs the seam:
joined = cat(text + d_text, image + d_image) + d_joined. That is Delta-Cache (Eq. 3) once a part.
"""

from __future__ import annotations

from deltapass.compiler.addends import Addends
from deltapass.compiler.streams import Stream, alike, pair_streams
from deltapass.errors import StreamError
from deltapass.graph.program import Captured, TensorSpec
from deltapass.graph.stack import Stack
from deltapass.schedule.rules import Span


def streams_of_span(
    captured: Captured, stack: Stack, span: Span, addends: Addends
) -> tuple[Stream, ...]:
    """The streams of a span, in as few parts as there can be.

    Raises:
        StreamError: As `pair_streams` for the whole span, or for a part that no seam cuts; where
            blocks lie inside each other, as `stream_between`.
    """
    if stack.is_nested:
        return (stream_between(captured, stack, span),)

    def paired(stop: int) -> tuple[Stream, ...]:
        blocks = stack.blocks[span.start : stop]
        return pair_streams(captured, blocks, str(span), addends=addends)

    try:
        return paired(span.stop)
    except StreamError:
        for cut in stack.seams_within(span.start, span.stop):
            try:
                first = paired(cut)
            except StreamError:
                continue
            rest = streams_of_span(captured, stack, Span(cut, span.stop), addends)
            return (*first, *rest)
        raise


def stream_between(captured: Captured, stack: Stack, span: Span) -> Stream:
    """The one stream of a span of nested blocks: between the two ends of its first one.

    Raises:
        StreamError: If the span leaves out the innermost blocks, or the values at its two ends
            differ in shape.
    """
    check_holds_innermost(stack, span)
    ends = stack.ends[span.start]
    entered, left = (captured.values[name] for name in (ends.live_in, ends.live_out))
    if not (isinstance(entered, TensorSpec) and isinstance(left, TensorSpec)):
        raise StreamError(str(span), ends.live_out, "is no tensor")
    if not alike(entered, left, any_float=True):
        raise StreamError(str(span), ends.live_out, f"is {left}, and what enters is {entered}")
    return Stream(live_in=ends.live_in, live_out=ends.live_out, spec=left)


def check_holds_innermost(stack: Stack, span: Span) -> None:
    """Raise StreamError for a span of nested blocks that leaves out the innermost ones."""
    if span.stop < len(stack):
        inner = "leaves the span before its innermost block, and blocks lie inside each other"
        raise StreamError(str(span), stack.ends[span.stop].live_in, inner)
