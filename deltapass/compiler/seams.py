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
from deltapass.compiler.streams import Stream, pair_streams
from deltapass.errors import StreamError
from deltapass.graph.program import Captured, Stack
from deltapass.schedule.rules import Span


def streams_of_span(
    captured: Captured, stack: Stack, span: Span, addends: Addends
) -> tuple[Stream, ...]:
    """The streams of a span, in as few parts as there can be.

    Raises:
        StreamError: As `pair_streams` for the whole span, or for a part that no seam cuts.
    """

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
