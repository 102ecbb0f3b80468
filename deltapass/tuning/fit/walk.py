"""Fitting while walking: a schedule is run on its own predictions, and each row is fitted there.

Errors made at early rows reach later ones as they will in use: what a row is fitted to are the
inputs that the rows before it lead to, by weights of all batches so far.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import accumulate
from typing import Final, final

import torch

from deltapass.errors import CalibrationError
from deltapass.schedule.explicit import ExplicitSchedule
from deltapass.schedule.predictors import predictor_named
from deltapass.schedule.weights import Vectors, Weights
from deltapass.selector.model import ModelInfo
from deltapass.selector.weighing import RowWeights
from deltapass.sessions.deltas import History, Row
from deltapass.sessions.report import branch_label
from deltapass.sessions.session import Session
from deltapass.sessions.trajectory import Place
from deltapass.tuning.fit.gram import Gram, fitted, gram, relative

ALL: Final = "*"  # the group of all branches, or of all streams
Group = tuple[int, str, int | str]  # step, branch or ALL, stream or ALL


@final
@dataclass(frozen=True, kw_only=True)
class Sharing:
    """How weights are fitted.

    Attributes:
        depth: K, the most deltas that a weight is fitted for.
        per_branch: Whether every branch has weights of its own.
        per_stream: Whether every stream has.
        strength: How many samples the predictor's own weights count for.
    """

    depth: int = 3
    per_branch: bool = False
    per_stream: bool = False
    strength: float = 2.0

    def groups(self, step: int, branch: str, stream: int) -> Iterator[Group]:
        """Where a row's products count: branches with weights of their own count for all too."""
        for whose in (ALL, branch) if self.per_branch else (ALL,):
            yield step, whose, stream if self.per_stream else ALL

    def share(self, samples: int) -> float:
        """The predictor's share in weights fitted to some samples (`fitted`)."""
        return self.strength / (self.strength + samples) if self.strength else 0.0


@final
@dataclass(frozen=True, kw_only=True)
class GroupFit:
    """What is known of the weights of one group after the walks.

    Attributes:
        weights: The fitted ones, newest delta first.
        prior: The predictor's, at least as many.
        fitted: Relative error of fitted weights: each batch by those fitted to all others; with a
            single batch on that one itself.
        predicted: Relative error of the predictor's weights, on the same.
        unseen: Whether there were others. What was walked is the same for both: of one batch
            the rows before were predicted with weights that the batch itself had a part in.
        at: Steps of the refreshes that made the deltas, newest first.
    """

    weights: tuple[float, ...]
    prior: tuple[float, ...]
    fitted: float
    predicted: float
    unseen: bool
    at: tuple[int, ...]

    @property
    def used(self) -> tuple[float, ...]:
        """The nearer ones of both."""
        return self.weights if self.helps else self.prior

    @property
    def helps(self) -> bool:
        """Whether the fitted weights are nearer than the predictor's."""
        return self.fitted < self.predicted


@final
class Walk:
    """An observer that fits the rows of one schedule, batch after batch.

    Only the products of deltas are kept, some numbers a row, branch, stream and batch.

    Attributes:
        schedule: The one to run: as given, but holding as many deltas as are fitted, or as its
            predictor reads.

    Raises:
        CalibrationError: By `weights`, if a delta is not finite.
    """

    def __init__(self, schedule: ExplicitSchedule, sharing: Sharing) -> None:
        self._forecast, self._sharing = schedule.forecast, sharing
        self._held = max(sharing.depth, self._forecast.depth)
        self.schedule = walked(schedule, self._held)
        # What is fitted to few samples is nearer to a line than to the newest delta as it is.
        straight = self._forecast.depth == 1 < sharing.depth
        self._drawn_to = predictor_named("linear") if straight else self._forecast
        self._at: dict[int, tuple[int, ...]] = {}
        self._samples: list[int] = []  # of every batch
        self._batches: list[dict[Group, Gram]] = []
        self._all: dict[Group, Gram] = {}

    def begin(self, samples: int) -> None:
        """What follows is a batch of so many new trajectories."""
        self._samples.append(samples)
        self._batches.append({})

    def met(self, model: ModelInfo, session: Session) -> None:
        """As `Observer.met`: nothing to do."""

    def weights(
        self, place: Place, row: Row, history: History, truth: tuple[torch.Tensor, ...]
    ) -> Vectors:
        """As `Observer.weights`: takes this call into account, then fits."""
        step, branch = place.step, branch_label(place.branch)
        at = history.at[: self._held]
        if at != self._planned(step, row, at):  # in use the predictor forecasts here
            return (self._forecast.weights(step, at),) * len(truth)
        vectors = []
        for stream, true in enumerate(truth):
            found = gram([deltas[stream] for deltas in history.deltas[: self._held]], true)
            if not found.finite:
                raise _not_finite(step, branch)
            groups = list(self._sharing.groups(step, branch, stream))
            for group in groups:
                self._add(group, found)
            vectors.append(groups[-1])
        return tuple(self._weights(group) for group in vectors)

    def _planned(self, step: int, row: Row, at: tuple[int, ...]) -> tuple[int, ...]:
        """The refreshes by whose deltas weights go in use, newest first."""
        weigh = row.weigh
        return self._at.setdefault(step, weigh.planned if isinstance(weigh, RowWeights) else at)

    def _add(self, group: Group, found: Gram) -> None:
        for known in (self._batches[-1], self._all):
            known[group] = known[group] + found if group in known else found

    def _weights(self, group: Group) -> tuple[float, ...]:
        return self._fitted(group[0], self._all[group], sum(self._samples))

    def _fitted(self, step: int, found: Gram, samples: int) -> tuple[float, ...]:
        """Weights of no more deltas than asked for, though the predictor may read more."""
        count = self._sharing.depth
        prior = self._drawn_to.weights(step, self._at[step][:count])
        return fitted(found.newest(count), prior, self._sharing.share(samples))

    def prior(self, step: int) -> tuple[float, ...]:
        """The predictor's weights at a cached step."""
        return self._forecast.weights(step, self._at[step])

    def fits(self) -> Mapping[Group, GroupFit]:
        """Every group that was met, in the order of steps."""
        return {group: self._fit(group) for group in sorted(self._all, key=_in_order)}

    def _fit(self, group: Group) -> GroupFit:
        known, weights = self._all[group], self._weights(group)
        prior = _filled(self.prior(group[0]), len(weights))
        apart = self._missed_apart(group)
        missed = known.missed(weights) if apart is None else apart
        return GroupFit(
            weights=weights,
            prior=prior,
            fitted=relative(missed, known.size),
            predicted=known.error(prior),
            unseen=apart is not None,
            at=self._at[group[0]][: len(prior)],
        )

    def _missed_apart(self, group: Group) -> float | None:
        """Squared: what weights fitted to all other batches miss of each; None for one batch."""
        pairs = zip(self._batches, self._samples, strict=True)
        found = [(batch[group], count) for batch, count in pairs if group in batch]
        if len(found) < 2:
            return None
        missed = 0.0
        for left_out, (judged, _) in enumerate(found):
            first, *others = (pair for at, pair in enumerate(found) if at != left_out)
            products = sum((other for other, _ in others), first[0])
            samples = first[1] + sum(count for _, count in others)
            missed += judged.missed(self._fitted(group[0], products, samples))
        return missed


def _in_order(group: Group) -> tuple[int, bool, str, int]:
    """By step; what all branches share comes before what one has of its own."""
    step, branch, stream = group
    return step, branch != ALL, branch, -1 if stream == ALL else int(stream)


def _filled(weights: tuple[float, ...], count: int) -> tuple[float, ...]:
    return (*weights, *[0.0] * (count - len(weights)))


def _not_finite(step: int, branch: str) -> CalibrationError:
    return CalibrationError(
        f"deltas of step {step}, branch {branch}, are infinite or not a number",
        "Mend what makes them so in the model: half precision that overflows does, where bfloat16 "
        "or float32 does not",
    )


def walked(schedule: ExplicitSchedule, depth: int) -> ExplicitSchedule:
    """The schedule to walk by: as given, but holding `depth` deltas wherever there can be."""
    refreshes = accumulate(int(row is None) for row in schedule.rows)
    weights = tuple(
        None if row is None else Weights(((1.0, *[0.0] * (min(depth, made) - 1)),))
        for row, made in zip(schedule.rows, refreshes, strict=True)
    )
    return ExplicitSchedule(schedule.rows, schedule.predictor, weights)


def weighed(
    schedule: ExplicitSchedule, fits: Mapping[Group, GroupFit]
) -> tuple[Weights | None, ...]:
    """The weights of every row, as schedules carry them; None where the predictor does better."""
    steps = range(len(schedule.rows))
    return tuple(_of_row({g: f for g, f in fits.items() if g[0] == step}) for step in steps)


def judged(fits: Mapping[Group, GroupFit]) -> Mapping[Group, GroupFit]:
    """Without what all branches share, where those that were met have weights of their own."""
    apart = {step for step, branch, _ in fits if branch != ALL}
    return {group: fit for group, fit in fits.items() if group[1] != ALL or group[0] not in apart}


def _of_row(fits: Mapping[Group, GroupFit]) -> Weights | None:
    if not any(fit.helps for fit in judged(fits).values()):
        return None
    count = max(len(fit.used) for fit in fits.values())
    vectors: dict[str, Vectors] = {}
    for (_, branch, _), fit in fits.items():
        vectors[branch] = (*vectors.get(branch, ()), _filled(fit.used, count))
    shared = vectors.pop(ALL)
    return Weights(shared, tuple(vectors.items()))
