"""Stage 4, for spans that are kept by their feature: the values that leave a span, as they are.

A feature needs no live-in, so nothing is paired: whatever leaves the span stands for itself, a long
skip as well as a residual stream. Only what was made from the noisy sample may: a value that
depends on the timestep or the text alone would be out of date at the next step, or is no work of
the blocks.
Source: Faster Diffusion, arXiv:2312.09608, which reuses the features of an encoder.
"""

from __future__ import annotations

from collections.abc import Iterator

from torch import fx

from deltapass.compiler.flow import reached
from deltapass.compiler.seams import check_holds_innermost
from deltapass.compiler.streams import Stream
from deltapass.errors import StreamError
from deltapass.graph.program import Captured
from deltapass.graph.stack import Stack
from deltapass.schedule.rules import Span


def features_of_span(captured: Captured, stack: Stack, span: Span) -> tuple[Stream, ...]:
    """One stream without a live-in for every value that leaves a span, in program order.

    Raises:
        StreamError: If one is no tensor, or does not depend on the noisy sample.
    """
    noisy = reached(captured)
    return tuple(_feature(captured, out, noisy, span) for out in _leaving(captured, stack, span))


def _leaving(captured: Captured, stack: Stack, span: Span) -> Iterator[fx.Node]:
    first, last = stack.blocks[span.start], stack.blocks[span.stop - 1]
    if stack.is_nested:
        check_holds_innermost(stack, span)
        last = first
    within = captured.nodes[first.first : last.stop]
    inside = set(within)
    return (node for node in within if any(user not in inside for user in node.users))


def _feature(captured: Captured, out: fx.Node, noisy: frozenset[str], span: Span) -> Stream:
    spec = captured.spec(out)
    if spec is None:
        raise StreamError(str(span), out.name, "is no single tensor")
    if out.name not in noisy:
        problem = "is not made from the noisy sample: kept, it would be out of date"
        raise StreamError(str(span), out.name, problem)
    return Stream(live_in="", live_out=out.name, spec=spec)
