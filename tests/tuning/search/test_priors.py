from __future__ import annotations

import itertools
import random
from collections.abc import Callable

import numpy as np
import pytest

from deltapass.schedule.rules import Span
from deltapass.tuning.search.candidates import Forecast, Space
from deltapass.tuning.search.costs import MACS, Costs
from deltapass.tuning.search.pairs import Pairs
from deltapass.tuning.search.priors import Priors, best_places, even, growing, table_of

FULL = Span(0, 4)
COSTS = Costs(unit=MACS, steps=8, full=1.0, spans={FULL: 0.1, Span(2, 4): 0.5})


def total(missed: Callable[..., float], steps: int, places: tuple[int, ...]) -> float:
    """What is missed in all, read off the definition."""
    cached = (step for step in range(steps) if step not in places)
    return sum(
        missed(step, tuple(at for at in reversed(places) if at < step)[:2]) for step in cached
    )


@pytest.mark.parametrize("count", [1, 2, 4, 7])
@pytest.mark.parametrize("seed", range(3))
def test_no_other_places_miss_less(count: int, seed: int) -> None:
    def missed(step: int, at: tuple[int, ...]) -> float:
        return random.Random(f"{seed}/{step}/{at[:2]}").random()

    ways = ((0, *rest) for rest in itertools.combinations(range(1, 7), count - 1))
    least = min(total(missed, 7, way) for way in ways)
    found = best_places(missed, 7, count, 2)
    assert len(found) == count and found[0] == 0
    assert total(missed, 7, found) == pytest.approx(least)


def test_even_and_growing_gaps() -> None:
    assert even(20, 11) == (0, 1, 2, 4, 6, 8, 10, 12, 14, 16, 18)
    assert even(4, 1) == (0,)
    assert growing(20, 7, 1.2) == (0, 2, 3, 6, 8, 12, 15)
    for count, by in itertools.product(range(1, 21), (1.0, 1.1, 1.5)):
        found = growing(20, count, by)
        assert len({*found}) == count and found[0] == 0 and found[-1] < 20


def test_first_candidates_spend_a_share_and_no_more() -> None:
    """Deltas that jump in the middle: a refresh is placed right after the jump."""
    series = np.array([1.0] * 5 + [9.0] * 3)
    pairs = Pairs({span: np.outer(series, series) for span in COSTS.spans})
    space = Space(steps=8, blocks=4, spans=tuple(COSTS.spans), forecasts=("reuse",), rules=False)
    found = list(Priors(space, COSTS, pairs).within(0.35))
    assert found[0].rows == table_of((0, 5), FULL, 8)
    assert len({*found}) == len(found)
    for each in found:
        assert COSTS.fits(each.rows, 0.35)
        assert sum(row is None for row in each.rows) == 2 if FULL in each.rows else True


def test_fitted_weights_and_predictors_come_from_products() -> None:
    """A series that doubles: one fitted weight forecasts it."""
    series = 2.0 ** np.arange(6)
    pairs = Pairs({FULL: np.outer(series, series)})
    (weight,) = pairs.weights(Forecast.named("fitted-1"), FULL, 3, (2, 1, 0))
    assert weight == pytest.approx(2.0)
    half = Pairs(pairs.products, share=0.5)  # the predictor's own weight is 1: the newest delta
    assert half.weights(Forecast.named("fitted-1"), FULL, 3, (2, 1, 0)) == pytest.approx((1.5,))
    assert pairs.weights(Forecast.named("linear"), FULL, 3, (2, 1, 0)) == (2.0, -1.0)
    missed = pairs.missed(Forecast.named("reuse"), FULL, 4, (2, 0))
    assert missed == pytest.approx((16.0 - 4.0) ** 2)
