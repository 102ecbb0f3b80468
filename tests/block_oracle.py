"""Delta-Cache in eager PyTorch for any model, told only its blocks: no streams are named.

What a block is given and gives is recorded at a refresh. At a cached step the blocks of a span are
not run: the last one gives, for each tensor, what its span began with plus the delta. Which input
an output continues is told by its shape, and among several of one shape by how alike they are.
Source: Delta-DiT, arXiv:2406.01125, Eq. 3.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import Any
from unittest.mock import patch

import torch
from reference import SpanLike
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

Recorded = list[tuple[list[Tensor], Any]]


class BlockOracle:
    """Runs steps of `model`; `seams` are the blocks before which its streams are laid out anew."""

    def __init__(self, model: nn.Module, blocks: Sequence[nn.Module], seams: Sequence[int]) -> None:
        self.model, self.blocks, self.seams = model, blocks, seams
        self._refreshed: Recorded = []

    @torch.no_grad()
    def step(self, kwargs: dict[str, Any], span: SpanLike | None) -> Any:
        """The model's output; `span` is None for a refresh."""
        self._at, self._live_in = 0, list[Tensor]()
        self._ends = {} if span is None else self._parts(span.start, span.stop)
        if span is None:
            self._refreshed = []
        with ExitStack() as stack:
            for block in dict.fromkeys(self.blocks):
                stack.enter_context(patch.object(block, "forward", self._replaced(block.forward)))
            return self.model(**kwargs)

    def _replaced(self, forward: Callable[..., Any]) -> Callable[..., Any]:
        def replaced(*args: Any, **kwargs: Any) -> Any:
            at, self._at = self._at, self._at + 1
            given = [leaf.clone() for leaf in _tensors((args, kwargs))]
            if at in self._ends:
                return self._cached(at, given)
            result = forward(*args, **kwargs)
            if not self._ends:
                self._refreshed.append((given, tree_map(_clone, result)))
            return result

        return replaced

    def _cached(self, at: int, given: list[Tensor]) -> Any:
        first, stop = self._ends[at]
        if at == first:
            self._live_in = given
        entered, left = self._refreshed[first][0], self._refreshed[at][1]
        if at < stop - 1:
            return tree_map(_clone, left)
        return tree_map(lambda out: self._predicted(entered, out), left)

    def _predicted(self, entered: list[Tensor], out: Any) -> Any:
        continued = _continued(entered, out) if torch.is_tensor(out) else None
        if continued is None:
            return out
        return torch.add(out - entered[continued], self._live_in[continued])

    def _parts(self, start: int, stop: int) -> dict[int, tuple[int, int]]:
        """Block -> its part of the span, in as few parts as there can be."""
        ends: dict[int, tuple[int, int]] = {}
        while start < stop:
            cuts = [stop, *(at for at in reversed(self.seams) if start < at < stop)]
            end = next((cut for cut in cuts if self._is_whole(start, cut)), stop)
            ends.update(dict.fromkeys(range(start, end), (start, end)))
            start = end
        return ends

    def _is_whole(self, start: int, stop: int) -> bool:
        entered, left = self._refreshed[start][0], self._refreshed[stop - 1][1]
        return all(_continued(entered, out) is not None for out in _tensors(left))


def _continued(entered: list[Tensor], out: Tensor) -> int | None:
    """The index of the value that an output continues."""
    alike = [at for at, each in enumerate(entered) if each.shape == out.shape]
    if not out.is_floating_point():
        return None
    flat = out.flatten()
    return max(
        alike,
        key=lambda at: torch.cosine_similarity(entered[at].flatten(), flat, dim=0).item(),
        default=None,
    )


def _tensors(tree: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(tree) if torch.is_tensor(leaf)]


def _clone(value: Any) -> Any:
    return value.clone() if torch.is_tensor(value) else value
