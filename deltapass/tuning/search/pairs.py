"""Inner products between the deltas of all steps, from a few plain trajectories.

They say how well the delta of any step is predicted from those of any refreshes, and with which
weights: no trajectory need be run to fit a candidate, or to place refreshes well at first.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import final

import numpy as np
import torch

from deltapass.schedule.explicit import ExplicitSchedule
from deltapass.schedule.made_for import MadeFor
from deltapass.schedule.rules import Span, Table
from deltapass.schedule.weights import Vectors, Weights
from deltapass.selector.model import ModelInfo
from deltapass.sessions.deltas import History, Row
from deltapass.sessions.session import Session
from deltapass.sessions.trajectory import Place
from deltapass.tuning.fit.gram import Gram, fitted
from deltapass.tuning.search.candidates import Candidate, Forecast

Products = np.ndarray[tuple[int, int], np.dtype[np.float64]]


@final
@dataclass(frozen=True)
class Pairs:
    """Products of the deltas of every two steps, by span, summed over seeds, branches and streams.

    Attributes:
        products: By span; (T, T) each, symmetric, float64, T steps.
        share: The predictor's, in fitted weights (`fitted`).
    """

    products: Mapping[Span, Products]
    share: float = 0.0

    def gram(self, span: Span, step: int, at: Sequence[int]) -> Gram:
        """Those of the deltas made at some refreshes, newest first, and of a later step's."""
        places = [*at, step]
        return Gram(self.products[span][np.ix_(places, places)])

    def weights(
        self, forecast: Forecast, span: Span, step: int, at: Sequence[int]
    ) -> tuple[float, ...]:
        """The weights that a row would carry: the predictor's, or fitted ones."""
        read = tuple(at[: forecast.depth])
        prior = forecast.predictor.weights(step, read, len(self.products[span]))
        return fitted(self.gram(span, step, read), prior, self.share) if forecast.fitted else prior

    def missed(self, forecast: Forecast, span: Span, step: int, at: Sequence[int]) -> float:
        """Squared norm of what the prediction of a step's delta misses."""
        read = tuple(at[: forecast.depth])
        error = self.gram(span, step, read).error(self.weights(forecast, span, step, read))
        return error**2 * float(self.products[span][step, step])

    def schedule(self, candidate: Candidate, made_for: MadeFor | None = None) -> ExplicitSchedule:
        """A candidate as a schedule, its weights fitted where its forecast says so."""
        forecast = Forecast.named(candidate.forecast)
        if not forecast.fitted:
            return ExplicitSchedule(candidate.rows, forecast.predictor.name, (), made_for)
        weights = tuple(
            None if span is None else Weights((self._of(forecast, candidate, span, step),))
            for step, span in enumerate(candidate.rows)
        )
        return ExplicitSchedule(candidate.rows, forecast.predictor.name, weights, made_for)

    def _of(
        self, forecast: Forecast, candidate: Candidate, span: Span, step: int
    ) -> tuple[float, ...]:
        return self.weights(forecast, span, step, candidate.made_at(step))


@final
class Recorder:
    """An observer that keeps the deltas of one batch of plain trajectories, and their products."""

    def __init__(self, steps: int) -> None:
        self.products: Products = np.zeros((steps, steps))
        self._kept: dict[Hashable, dict[int, tuple[torch.Tensor, ...]]] = {}

    @staticmethod
    def table(span: Span, steps: int) -> Table:
        """What is planned, so that every step but the first is looked at."""
        return (None, *[span] * (steps - 1))

    def met(self, model: ModelInfo, session: Session) -> None:
        """As `Observer.met`: nothing to do."""

    def weights(
        self, place: Place, row: Row, history: History, truth: tuple[torch.Tensor, ...]
    ) -> Vectors | None:
        """As `Observer.weights`: notes the true deltas; the step stays a full one."""
        kept = self._kept.setdefault(place.branch, {})
        if not kept:
            self._note(kept, history.at[0], history.deltas[0])
        self._note(kept, place.step, truth)
        return None

    def _note(
        self,
        kept: dict[int, tuple[torch.Tensor, ...]],
        step: int,
        deltas: tuple[torch.Tensor, ...],
    ) -> None:
        kept[step] = tuple(delta.detach().clone() for delta in deltas)
        found = torch.stack([sum_of_products(earlier, deltas) for earlier in kept.values()])
        for other, product in zip(kept, found.tolist(), strict=True):
            self.products[step, other] += product
            if other != step:
                self.products[other, step] += product


def sum_of_products(ours: Sequence[torch.Tensor], theirs: Sequence[torch.Tensor]) -> torch.Tensor:
    """The inner product of two deltas of all streams, in float64 where the device has it."""
    return torch.stack(list(_products(ours, theirs))).sum()


def _products(
    ours: Sequence[torch.Tensor], theirs: Sequence[torch.Tensor]
) -> Iterator[torch.Tensor]:
    for one, other in zip(ours, theirs, strict=True):
        wide = torch.float32 if one.device.type == "mps" else torch.float64
        yield torch.dot(one.reshape(-1).to(wide), other.reshape(-1).to(wide))
