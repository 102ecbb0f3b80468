"""From guided calls to calls of half the batch: what was kept goes on as the mean of both halves.

Behind its gate TGATE leaves out the unconditional half of guidance. Who samples so calls the model
with half the batch from one step on, which is another compiled graph. A schedule that says so
(`halves`) lets the cross-attention that was kept be handed over; all else is dropped as ever.
Source: TGATE, arXiv:2404.02747.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from deltapass.graph.program import TensorSpec
from deltapass.schedule.rules import Span
from deltapass.selector.freshness import Graph
from deltapass.sessions.deltas import History, Lane
from deltapass.sessions.streams import use

Shapes = tuple[tuple[int, ...], ...]


def hand_over(lane: Lane, graph: Graph, span: Span, shapes: Callable[[Span], Shapes]) -> None:
    """Let a lane's kept cross-attention go on in a graph of half the batch, if that is what came.

    Args:
        lane: Of the call; if it is handed over, it is one of the new graph afterwards.
        graph: The graph about to run.
        span: What the call is to read.
        shapes: Of what that graph keeps of a span.
    """
    if lane.graph is None or lane.structure == graph.structure or lane.doubt is not None:
        return
    history = lane.histories.get(span)
    if history is None or not is_half(lane.specs, graph.specs):
        return
    use(history)
    halved = _halved(history)
    if not all(_shapes(kept) == shapes(span) for kept in halved.deltas):
        return
    lane.histories = {span: halved}
    lane.graph, lane.structure, lane.specs = graph.token, graph.structure, graph.specs
    lane.conditioning.clear()  # positions of the other graph, and prompts of the other half


def is_half(
    before: Sequence[tuple[str, TensorSpec]], now: Sequence[tuple[str, TensorSpec]]
) -> bool:
    """Whether calls have half the samples that they had, and are the same otherwise.

    What has no sample's dimension, such as positions, stays as it is.
    """
    names = [name for name, _ in before] == [name for name, _ in now]
    pairs = [(old, new) for (_, old), (_, new) in zip(before, now, strict=False)]
    # The noisy samples come first.
    return names and bool(pairs) and _is_half(*pairs[0]) and all(map(_fits, pairs))


def _fits(pair: tuple[TensorSpec, TensorSpec]) -> bool:
    old, new = pair
    alike = (old.dtype, old.device) == (new.dtype, new.device)
    return alike and (old.shape == new.shape or _is_half(old, new))


def _is_half(old: TensorSpec, new: TensorSpec) -> bool:
    known = bool(old.shape) and bool(new.shape)
    return known and (old.shape[0], old.shape[1:]) == (2 * new.shape[0], new.shape[1:])


def _halved(history: History) -> History:
    deltas = [tuple(map(_mean_of_halves, kept)) for kept in history.deltas]
    return History(deltas=deltas, at=history.at, keep=history.keep)


def _mean_of_halves(kept: torch.Tensor) -> torch.Tensor:
    """Of both halves of guidance, sample by sample; what cannot be halved stays."""
    if len(kept) % 2:
        return kept
    one, other = kept.chunk(2)
    return (one + other) / 2


def _shapes(kept: tuple[torch.Tensor, ...]) -> Shapes:
    return tuple(tuple(each.shape) for each in kept)
