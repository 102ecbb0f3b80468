"""Delta-Cache in eager PyTorch, without a graph: the oracle to equal bit for bit.

Takes any model, its blocks in execution order, and how a block is called (`Streams`); replaces the
blocks' `forward` while it runs. A span over a seam (deltapass/compiler/seams.py) is one span before
it and one after it. Source: Delta-DiT, arXiv:2406.01125, Eq. 3; order 1 is ours.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import Any, Protocol
from unittest.mock import patch

import torch
from models.streams import SINGLE_STREAM, Call, Streams, Values
from torch import Tensor, nn


class SpanLike(Protocol):
    """Blocks start .. stop-1."""

    @property
    def start(self) -> int: ...
    @property
    def stop(self) -> int: ...


class DeltaCacheReference:
    """Run whole trajectories of `model` with spans of `blocks` replaced by live-in + delta."""

    def __init__(
        self,
        model: nn.Module,
        blocks: Sequence[nn.Module],
        streams: Streams | Sequence[Streams] = SINGLE_STREAM,
        order: int = 0,
        seams: Sequence[int] = (),
    ) -> None:
        """`streams` are those of all blocks, or of each; `seams` the blocks that begin anew."""
        self.model, self.blocks, self.order, self.seams = model, tuple(blocks), order, seams
        every = [streams] * len(self.blocks) if isinstance(streams, Streams) else streams
        self.streams: Sequence[Streams] = every
        self.blocks_run: list[int] = []  # one count a step
        self._span: SpanLike | None = None

    @torch.no_grad()
    def run(
        self,
        table: Sequence[SpanLike | None],
        calls: Sequence[Call],
        positions: Sequence[float] | None = None,
    ) -> list[Any]:
        """Outputs of all steps; `table[i]` is None for a refresh, else the span to replace.

        `positions` are the places extrapolation goes by, the step numbers where not given.
        """
        self._positions = list(range(len(table))) if positions is None else positions
        self._history: list[tuple[float, list[Values], list[Values]]] = []  # place, in, out
        self.blocks_run, outputs = [], []
        with ExitStack() as stack:
            for index, block in enumerate(self.blocks):
                replaced = self._replace(index, block.forward)
                stack.enter_context(patch.object(block, "forward", replaced))
            for (args, kwargs), span, place in zip(calls, table, self._positions, strict=True):
                self._span, self._place = span, place
                self.blocks_run.append(0)
                self._entered: list[Values] = []
                self._left: list[Values] = []
                outputs.append(self.model(*args, **kwargs))
                if span is None:
                    self._history = [*self._history[-1:], (place, self._entered, self._left)]
        return outputs

    def _replace(self, index: int, forward: Callable[..., Any]) -> Callable[..., Any]:
        def replaced(*args: Any, **kwargs: Any) -> Any:
            span, streams = self._span, self.streams[index]
            entering = streams.take(args, kwargs)
            if span is not None and span.start <= index < span.stop:
                start = max([span.start, *(at for at in self.seams if at <= index)])
                return streams.pack(self._cached(start, index, entering))
            # Cloned because a block may change its live-in in place.
            self._entered.append(tuple(value.clone() for value in entering))
            self.blocks_run[-1] += 1
            result = forward(*args, **kwargs)
            leaving = streams.unpack(result)
            self._left.append(tuple(None if v is None else v.clone() for v in leaving))
            return result

        return replaced

    def _cached(self, start: int, index: int, entering: tuple[Tensor, ...]) -> Values:
        if index == start:
            self._live_in = entering
        # What a block inside hands on is read behind the span only, as by a long skip.
        deltas = [self._predict(start, index, stream) for stream in range(len(entering))]
        pairs = zip(deltas, self._live_in, strict=True)
        return tuple(None if d is None else _sum(d, live_in) for d, live_in in pairs)

    def _predict(self, start: int, index: int, stream: int) -> Tensor | None:
        """The delta of what block `index` gives, onto what enters the span at block `start`."""
        deltas = []
        for _, entered, left in self._history:
            live_in, live_out = entered[start][stream], left[index][stream]
            if live_out is None:
                return None
            deltas.append(_wide(live_out) - _wide(live_in))
        if self.order == 0:
            return deltas[-1]
        first, last = self._history[0][0], self._history[-1][0]
        share = 0.0 if len(deltas) == 1 else (self._place - last) / (last - first)
        weight = torch.tensor(share, dtype=torch.float32, device=deltas[-1].device)
        return deltas[-1] + weight * (deltas[-1] - deltas[0])


def _wide(value: Tensor) -> Tensor:
    """A float16 stream in float32, within the range of float16; any other as it is."""
    if value.dtype != torch.float16:
        return value
    most = torch.finfo(torch.float16).max
    return value.float().clamp(-most, most)


def _sum(delta: Tensor, live_in: Tensor) -> Tensor:
    """live_in + delta; of a float16 stream in float32, and clipped to the range of float16."""
    if live_in.dtype != torch.float16:
        return torch.add(delta, live_in)
    most = torch.finfo(torch.float16).max
    return torch.add(delta, live_in.float()).clamp(-most, most).half()
