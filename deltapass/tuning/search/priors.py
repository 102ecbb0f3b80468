"""Where a search begins: refreshes placed by dynamic programming, evenly, by the paper's rule."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Final, final

from deltapass.schedule.presets import delta_dit
from deltapass.schedule.rules import Span, Table
from deltapass.tuning.search.candidates import Candidate, Forecast, Space
from deltapass.tuning.search.costs import Costs
from deltapass.tuning.search.pairs import Pairs

WARM_UP: Final = 2
DEEP: Final = 3  # refreshes that the programme looks back at, on trajectories of up to LONG steps
LONG: Final = 32
GROWTH: Final = (1.1, 1.2, 1.35)  # from one gap between refreshes to the next
# How much more what is missed at the first step counts than at the last, which later steps cannot
# correct: from equally to a little.
LATE: Final = (1.0, 0.5, 0.2)

Missed = Callable[[int, tuple[int, ...]], float]  # step, refreshes newest first -> error


@final
@dataclass(frozen=True)
class Priors:
    """First candidates for trajectories that cost no more than a share.

    Attributes:
        space: What is searched.
        costs: What candidates cost.
        pairs: Products of deltas, where they are known.
    """

    space: Space
    costs: Costs
    pairs: Pairs | None

    def within(self, most: float) -> Iterator[Candidate]:
        """Candidates of up to that share, the most promising first."""
        yield from dict.fromkeys(self._within(most))

    def _within(self, most: float) -> Iterator[Candidate]:
        counts = [(span, self.affordable(span, most)) for span in self.space.spans]
        counts = [(span, count) for span, count in counts if 1 <= count < self.space.steps]
        for late in LATE:
            for forecast in self.space.forecasts:
                yield from self._placed(counts[:1], forecast, late)
        for forecast in self.space.forecasts[:1]:
            yield from self._placed(counts[1:], forecast, LATE[1])
            yield from (
                Candidate(
                    table_of(growing(self.space.steps, n, by), span, self.space.steps), forecast
                )
                for by in GROWTH
                for span, n in counts[:1]
            )
            yield from (
                Candidate(table_of(even(self.space.steps, count), span, self.space.steps), forecast)
                for span, count in counts
            )
        rule = Candidate(delta_dit().table(self.space.steps, self.space.blocks), "reuse")
        known = {*rule.rows} <= {None, *self.space.spans} and "reuse" in self.space.forecasts
        if known and self.costs.fits(rule.rows, most):
            yield rule

    def affordable(self, span: Span, most: float) -> int:
        """How many refreshes a share pays for, if every other step skips the span."""
        steps, costs = self.space.steps, self.costs
        tables = (table_of(range(count), span, steps) for count in range(steps, 0, -1))
        return next((steps - i for i, rows in enumerate(tables) if costs.fits(rows, most)), 0)

    def _placed(
        self, counts: Sequence[tuple[Span, int]], name: str, late: float
    ) -> Iterator[Candidate]:
        """One candidate a span, by the programme, where the forecast reads the newest deltas."""
        forecast = Forecast.named(name)
        if self.pairs is None or forecast.predictor.accumulates:
            return
        for span, count in counts:
            rows = table_of(self.placed(span, count, forecast, late), span, self.space.steps)
            yield Candidate(rows, name)

    def placed(self, span: Span, count: int, forecast: Forecast, late: float) -> tuple[int, ...]:
        """The refreshes with the least missed in all, what is missed late counting less."""
        pairs, steps = self.pairs, self.space.steps
        if pairs is None:
            return even(steps, count)
        deep = min(DEEP if steps <= LONG else DEEP - 1, forecast.depth)

        @cache
        def missed(step: int, at: tuple[int, ...]) -> float:
            weight = 1.0 + (late - 1.0) * step / max(1, steps - 1)
            return weight * pairs.missed(forecast, span, step, at)

        return best_places(missed, steps, count, deep)


def table_of(refreshes: Sequence[int], span: Span, steps: int) -> Table:
    """The table that refreshes at some steps and skips one span at all others."""
    full = {*refreshes}
    return tuple(None if step in full else span for step in range(steps))


def even(steps: int, count: int) -> tuple[int, ...]:
    """Two steps of warm-up, then refreshes as evenly as they go."""
    first = min(WARM_UP, count)
    left = count - first
    return (*range(first), *(first + i * (steps - first) // left for i in range(left)))


def growing(steps: int, count: int, by: float) -> tuple[int, ...]:
    """Refreshes ever further apart, each gap `by` times the one before: early steps decide most."""
    places, total = [0.0], sum(by**i for i in range(count))
    for i in range(count - 1):
        places.append(places[-1] + steps * by**i / total)
    found: list[int] = []
    for at in places:  # gaps of less than a step are whole ones
        found.append(max(round(at), found[-1] + 1 if found else 0))
    return tuple(found)


def best_places(missed: Missed, steps: int, count: int, deep: int) -> tuple[int, ...]:
    """The `count` refreshes, step 0 among them, with the least sum of what is missed between.

    Dynamic programming over the newest `deep` refreshes; exact where predictions read no more.

    Args:
        missed: What the prediction of a step misses, given the refreshes before it, newest first.
        steps: Steps of the trajectory.
        count: Refreshes, from 1 to `steps`.
        deep: Refreshes that a prediction reads.
    """
    ways: dict[tuple[int, ...], tuple[float, tuple[int, ...]]] = {(0,): (0.0, (0,))}
    for left in range(count - 1, 0, -1):
        longer: dict[tuple[int, ...], tuple[float, tuple[int, ...]]] = {}
        for newest, (before, path) in ways.items():
            total = before
            for step in range(newest[0] + 1, steps - left + 1):
                key = (step, *newest)[:deep]
                if key not in longer or total < longer[key][0]:
                    longer[key] = total, (*path, step)
                total += missed(step, newest)
        ways = longer
    ends = (
        (so_far + sum(missed(step, newest) for step in range(newest[0] + 1, steps)), path)
        for newest, (so_far, path) in ways.items()
    )
    return min(ends)[1]
