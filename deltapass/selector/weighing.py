"""The weights of a row's deltas as tensors, and the fits of predictors that accumulate."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final, final

import torch

from deltapass.schedule.predictors import Predictor, chebyshev_basis, chebyshev_gains
from deltapass.schedule.weights import Vectors
from deltapass.sessions.deltas import History, Weigh

MANY: Final = 64  # of one row: forced refreshes may put its deltas at any steps

Deltas = tuple[torch.Tensor, ...]


@final
@dataclass(frozen=True, kw_only=True, slots=True)
class RowWeights:
    """Weights of one row's deltas, made once for every way in which these came to be.

    Attributes:
        step: The row's.
        steps: Length of the trajectory; 0 where it is not known.
        taken: Weights a stream; those beyond what is held are 0.
        streams: Streams of the span.
        predictor: Gives weights where `fitted` has none.
        fitted: Weights for deltas made at `planned`, newest first.
    """

    step: int
    steps: int
    taken: int
    streams: int
    predictor: Predictor
    planned: tuple[int, ...] = ()
    fitted: Vectors | None = None
    _made: dict[tuple[object, ...], Deltas] = field(default_factory=dict)

    def __call__(self, at: tuple[int, ...], device: torch.device) -> Deltas:
        """As tensors, one a stream: float32, `taken` numbers."""
        key = at, device
        made = self._made.get(key)
        if made is None:
            if len(self._made) >= MANY:
                self._made.clear()
            made = self._made[key] = tensors_of(self.vectors(at), self.taken, device)
        return made

    def vectors(self, at: tuple[int, ...]) -> Vectors:
        """The weights of each stream for deltas made at these steps, newest first."""
        if self.fitted is not None and at[: len(self.planned)] == self.planned:
            return self.fitted
        return (self.predictor.weights(self.step, at, self.steps),) * self.streams


def tensors_of(vectors: Vectors, taken: int, device: torch.device) -> Deltas:
    """Vectors filled up with zeros to `taken` numbers, on a device.

    Made once and waited for there: a stream that reads them later need not know who filled them.
    """
    # On the CPU whatever the default device is: filled there, nobody can read them half-way.
    distinct = {
        vector: torch.tensor([*vector, *[0.0] * taken][:taken], dtype=torch.float32, device="cpu")
        for vector in vectors
    }
    # A copy from pageable memory is over when it returns.
    moved = {vector: made.to(device) for vector, made in distinct.items()}
    return tuple(moved[vector] for vector in vectors)


def weighted(history: History, taken: int, weigh: Weigh) -> Deltas:
    """Buffers and weights for a cached variant of `taken` weighted deltas a stream.

    Where fewer are held the newest stands in, with a weight of 0.
    """
    held = history.deltas[:taken]
    newest = held[0]
    held = [*held, *[newest] * (taken - len(held))]
    buffers = tuple(delta for deltas in held for delta in deltas)
    return buffers + weigh(history.at, newest[0].device)


def absorb(steps: int, history: History, deltas: Deltas, step: int) -> None:
    """Bring a Chebyshev fit up to date with the deltas of a refresh (recursive least squares).

    Args:
        steps: Length of the trajectory.
        history: Of the fit: its coefficients, one tuple a stream each.
        deltas: What the refresh gave, one a stream.
        step: The refresh.
    """
    at = (step, *history.at)
    gains = _gains(at, steps)
    if not history.deltas:
        history.deltas, history.at, history.keep = [deltas], at, 0
        return
    basis = chebyshev_basis(step, steps)[: len(history.deltas)]
    streams = []
    for which, delta in enumerate(deltas):
        held = [coefficients[which] for coefficients in history.deltas]
        streams.append(_updated(held, delta, basis, gains))
    history.deltas = [tuple(parts) for parts in zip(*streams, strict=True)]
    history.at, history.keep = at, 0


def _updated(
    held: Sequence[torch.Tensor],
    delta: torch.Tensor,
    basis: Sequence[float],
    gains: Sequence[float],
) -> list[torch.Tensor]:
    """Coefficients of one stream after one more delta; in float32 at least, held as deltas are."""
    wide = torch.promote_types(delta.dtype, torch.float32)
    error = delta.to(wide)
    for value, coefficient in zip(basis, held, strict=True):
        error = error - value * coefficient.to(wide)
    zero = torch.zeros((), dtype=wide, device=delta.device)
    old = [*held, *[zero] * (len(gains) - len(held))]
    pairs = zip(old, gains, strict=True)
    return [(c.to(wide) + gain * error).to(delta.dtype) for c, gain in pairs]


@functools.lru_cache(maxsize=1024)
def _gains(at: tuple[int, ...], steps: int) -> tuple[float, ...]:
    return chebyshev_gains(at, steps)
