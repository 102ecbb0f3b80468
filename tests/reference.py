"""Delta-Cache, and features in its place, in eager PyTorch: the oracle to equal bit for bit.

Takes any model, its blocks in execution order, and how a block is called (`Streams`); replaces the
blocks' `forward` while it runs. A span over a seam (deltapass/compiler/seams.py) is one span before
it and one after it. Source: Delta-DiT, arXiv:2406.01125, Eq. 3; predictions from several deltas,
sums of weight times delta in float32, are ours. What is weighed is found here anew; the weights are
those of the predictor (tests/schedule/test_predictors.py holds them to their definitions).

The rule of half precision: a stream of float16 or bfloat16 is subtracted, weighed and added in
float32, its deltas are held in float32, and what is predicted is rounded once, to the type of what
the blocks gave. Of float16 it is clipped to the range of the type, as models clip their own, but
not where the live-in or the newest delta is infinite: then the model's own value is no number that
float16 holds, and neither is what is predicted. A live-in that is infinite where the blocks made
something finite of it was clipped by them, and counts as the largest number.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from types import MappingProxyType
from typing import Any, Protocol
from unittest.mock import patch

import torch
from models.streams import SINGLE_STREAM, Call, Streams, Values
from torch import Tensor, nn

from deltapass.schedule.predictors import PREDICTORS, chebyshev_basis, chebyshev_gains


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
        order: int | str = 0,
        seams: Sequence[int] = (),
        steps: int = 0,
        given: Mapping[int, Sequence[Sequence[float]]] = MappingProxyType({}),
    ) -> None:
        """How deltas are predicted.

        `streams` are those of all blocks, or of each; `seams` the blocks that begin anew. `order`
        names the predictor, or is its old number. `given` are a step's own weights, one vector a
        stream, newest delta first; `steps` is the length that a fit is laid out for.
        """
        self.model, self.blocks, self.seams = model, tuple(blocks), seams
        self.predictor = PREDICTORS[("reuse", "linear")[order] if isinstance(order, int) else order]
        self.steps, self.given = steps, given
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
                    kept = self._history if self.predictor.accumulates else self._history[-3:]
                    self._history = [*kept, (place, self._entered, self._left)]
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
        return tuple(self._predict(start, index, stream) for stream in range(len(entering)))

    def _predict(self, start: int, index: int, stream: int) -> Tensor | None:
        """What block `index` gives: what enters the span at block `start`, and the delta.

        Where the feature is kept, that alone.
        """
        deltas: list[Tensor] = []
        feature = getattr(self._span, "keeps", "delta") == "feature"
        for _, entered, left in self._history:
            live_in, live_out = entered[start][stream], left[index][stream]
            if live_out is None:
                return None
            dtype = live_out.dtype
            deltas.append(_wide(live_out) if feature else _delta(live_out, live_in))
        own = self.given.get(int(self._place))
        live_in = None if feature else self._live_in[stream]
        if self.predictor.depth == 1 and own is None:
            return deltas[-1].to(dtype) if live_in is None else _sum(deltas[-1], live_in, dtype)
        places = [place for place, _, _ in self._history]
        if self.predictor.accumulates:
            deltas = self._coefficients(deltas, places)
        weights = self.predictor.weights(self._place, places[::-1], self.steps)
        if own is not None:
            weights = tuple(own[stream % len(own)])
        return _weighted_sum(deltas[::-1], weights, live_in, dtype)

    def _coefficients(self, deltas: Sequence[Tensor], places: Sequence[Any]) -> list[Tensor]:
        """Those of the fit to all deltas, oldest first as deltas are, by its own recursion."""
        held: list[Tensor] = []
        for at, delta in enumerate(deltas):
            gains = chebyshev_gains(tuple(reversed(places[: at + 1])), self.steps)
            basis = chebyshev_basis(places[at], self.steps)
            wide = torch.promote_types(delta.dtype, torch.float32)
            miss = delta.to(wide)
            for value, coefficient in zip(basis, held, strict=False):
                miss = miss - value * coefficient.to(wide)
            if not held:
                held = [delta]
                continue
            old = [*held, *[torch.zeros_like(delta)] * (len(gains) - len(held))]
            pairs = zip(old, gains, strict=True)
            held = [(c.to(wide) + gain * miss).to(delta.dtype) for c, gain in pairs]
        return held[::-1]


HALF = (torch.float16, torch.bfloat16)
MOST = torch.finfo(torch.float16).max


def _wide(value: Tensor) -> Tensor:
    """A stream of half precision in float32; any other as it is."""
    return value.float() if value.dtype in HALF else value


def _delta(live_out: Tensor, live_in: Tensor) -> Tensor:
    """What a span adds to a stream, in float32 where that is of half precision."""
    entered = _wide(live_in)
    if live_in.dtype == torch.float16:
        entered = entered.clamp(-MOST, MOST)
    return (_wide(live_out) - entered).to(_wide(live_out).dtype)


def _weighted_sum(
    deltas: Sequence[Tensor],
    weights: Sequence[float],
    live_in: Tensor | None,
    dtype: torch.dtype,
) -> Tensor:
    """live_in + the sum of weight times delta, newest first, in float32 at least; rounded once."""
    wide = torch.promote_types(dtype, torch.float32)
    if live_in is not None:
        wide = torch.promote_types(wide, live_in.dtype)
    total = torch.zeros((), dtype=wide)
    for at, (weight, delta) in enumerate(zip(weights, deltas, strict=False)):
        finite = delta.clamp(-2 * MOST, 2 * MOST) if dtype == torch.float16 else delta
        term = torch.tensor(weight, dtype=torch.float32).to(wide) * finite.to(wide)
        total = total + term if at else term
    if dtype == torch.float16:
        total = deltas[0].where(deltas[0].isinf(), total)
    return _rounded(total if live_in is None else total + live_in.to(wide), dtype)


def _sum(delta: Tensor, live_in: Tensor, dtype: torch.dtype) -> Tensor:
    """live_in + delta, in float32 where the stream is of half precision."""
    return _rounded(torch.add(delta, _wide(live_in)), dtype)


def _rounded(total: Tensor, dtype: torch.dtype) -> Tensor:
    """In the type of the stream; what is finite within the range of float16."""
    if dtype == torch.float16:
        total = total.where(total.isinf(), total.clamp(-MOST, MOST))
    return total.to(dtype)
