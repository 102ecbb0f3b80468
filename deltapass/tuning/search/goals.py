"""What a search looks for: the nearest candidate of some cost, or the cheapest one near enough."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import final

from deltapass.tuning.search.candidates import Candidate
from deltapass.tuning.search.costs import ROUNDING


@final
@dataclass(frozen=True, slots=True)
class Scored:
    """A candidate that was evaluated.

    Attributes:
        candidate: What was run.
        cost: Share of the plain trajectory.
        loss: Mean over seeds of what is minimised.
        number: Of its trial.
    """

    candidate: Candidate
    cost: float
    loss: float
    number: int = -1


@final
@dataclass(frozen=True, kw_only=True)
class Goal:
    """One of both limits; the other side is minimised.

    Attributes:
        most: Greatest share of the plain trajectory's cost.
        worst: Greatest loss, for the cheapest candidate within it.
        name: For people.
    """

    most: float = 1.0
    worst: float = math.inf
    name: str = ""

    @property
    def spends(self) -> bool:
        """Whether cost is given, so that what is left of it is better spent."""
        return self.worst == math.inf

    def met(self, scored: Scored) -> bool:
        """Whether a candidate keeps the limit."""
        return scored.cost <= self.most * (1 + ROUNDING) and scored.loss <= self.worst

    def order(self, scored: Scored) -> tuple[float, float, float]:
        """A key by which the better candidate comes first."""
        over = max(0.0, scored.cost - self.most * (1 + ROUNDING))
        if self.spends:
            return over, scored.loss, scored.cost
        short = max(0.0, scored.loss - self.worst)
        return over + short, scored.cost if not short else 0.0, scored.loss

    def ranked(self, known: Iterable[Scored]) -> list[Scored]:
        """Known candidates, the best first; one of equal rows and forecast counts once."""
        unique: dict[Candidate, Scored] = {}
        for scored in known:
            unique.setdefault(scored.candidate, scored)
        return sorted(unique.values(), key=self.order)

    def best(self, known: Iterable[Scored]) -> Scored | None:
        """The best candidate that keeps the limit, if one does."""
        return next((scored for scored in self.ranked(known) if self.met(scored)), None)
