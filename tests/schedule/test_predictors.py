"""schedule/predictors.py: what each predictor must forecast exactly, for uneven refreshes too."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from deltapass.errors import ScheduleError
from deltapass.schedule.predictors import (
    MOST_BUFFERS,
    PREDICTORS,
    RIDGE,
    chebyshev_basis,
    chebyshev_gains,
    predictor_named,
)

STEPS = 20
Series = Callable[[float], float]


@st.composite
def places(draw: st.DrawFn) -> tuple[int, tuple[int, ...]]:
    """A cached step, and the steps of some refreshes before it, newest first."""
    refreshes = draw(st.lists(st.integers(0, STEPS - 2), min_size=1, max_size=8, unique=True))
    step = draw(st.integers(max(refreshes) + 1, STEPS - 1))
    return step, tuple(sorted(refreshes, reverse=True))


def forecast(name: str, series: Series, step: int, at: Sequence[int]) -> float:
    """What a predictor makes of a series seen at the refreshes."""
    predictor = PREDICTORS[name]
    seen = fit([series(one) for one in at], at) if predictor.accumulates else map(series, at)
    return sum(w * v for w, v in zip(predictor.weights(step, at, STEPS), seen, strict=False))


def fit(values: Sequence[float], at: Sequence[int]) -> list[float]:
    """The coefficients that the recursion over the refreshes arrives at, oldest value first."""
    held: list[float] = []
    for newest in range(len(at) - 1, -1, -1):
        gains = chebyshev_gains(at[newest:], STEPS)
        basis = chebyshev_basis(at[newest], STEPS)
        miss = values[newest] - sum(f * c for f, c in zip(basis, held, strict=False))
        held = [*held, *[0.0] * (len(gains) - len(held))]
        held = [c + gain * miss for c, gain in zip(held, gains, strict=True)]
    return held


def constant(_: float) -> float:
    return 3.0


def line(step: float) -> float:
    return 2.0 - 0.7 * step


def curve(step: float) -> float:
    return 1.0 - 0.4 * step + 0.05 * step * step


# What every predictor must hit, once it has seen so many refreshes.
EXACT = [
    *((name, constant, 1) for name in PREDICTORS),
    *((name, line, 2) for name in PREDICTORS if name not in ("reuse", "hermite")),
    ("quadratic", curve, 3),
]


@pytest.mark.parametrize(("name", "series", "least"), EXACT)
@given(place=places())
def test_what_a_predictor_extrapolates_exactly(
    name: str, series: Series, least: int, place: tuple[int, tuple[int, ...]]
) -> None:
    step, at = place
    if len(at) >= least:
        assert forecast(name, series, step, at) == pytest.approx(series(step), abs=1e-6)


@pytest.mark.parametrize("name", [name for name in PREDICTORS if name != "chebyshev"])
@given(place=places())
def test_weights_sum_to_one(name: str, place: tuple[int, tuple[int, ...]]) -> None:
    step, at = place
    weights = PREDICTORS[name].weights(step, at)
    assert sum(weights) == pytest.approx(1.0)
    assert len(weights) == PREDICTORS[name].buffers(len(at))


@pytest.mark.parametrize(
    ("name", "step", "at", "weights"),
    [
        ("reuse", 5, (4, 2), (1.0,)),
        ("linear", 3, (2, 0), (1.5, -0.5)),
        ("linear", 12, (8, 5), (7 / 3, -4 / 3)),
        ("linear", 5, (4,), (1.0,)),
        ("quadratic", 3, (2, 1, 0), (3.0, -3.0, 1.0)),
        ("quadratic", 7, (6, 4, 0), (1.75, -7 / 8, 1 / 8)),
        # d0 + 3/2 (d0 - d1) - 1/2 (d1 - d2): the textbook's rule for equal steps.
        ("adams-bashforth", 3, (2, 1, 0), (2.5, -2.0, 0.5)),
        ("adams-bashforth", 3, (2, 0), (1.5, -0.5)),
        # d0 + x (d0 - d1) + x^2/2 (d0 - 2 d1 + d2) at x = 1.
        ("taylor", 3, (2, 1, 0), (2.5, -2.0, 0.5)),
        # x = 2, refreshes 2 apart: D1 = (d0 - d1) / 2, D2 = (d0 - 2 d1 + d2) / 4.
        ("taylor", 6, (4, 2, 0), (2.5, -2.0, 0.5)),
        ("taylor", 5, (4, 2), (1.5, -0.5)),
        # s = 0.5: d0 + x/2 D1 + (x^2 - 2)/8 D2, so at x = 2 half of what Taylor's line adds.
        ("hermite", 6, (4, 2, 0), (1 + 0.5 + 0.0625, -0.5 - 0.125, 0.0625)),
        ("hermite", 6, (4, 2), (1.5, -0.5)),
        ("hermite", 5, (4,), (1.0,)),
    ],
)
def test_weights_and_their_signs(
    name: str, step: int, at: tuple[int, ...], weights: tuple[float, ...]
) -> None:
    assert PREDICTORS[name].weights(step, at) == pytest.approx(weights)


def test_adams_bashforth_integrates_a_slope_that_is_a_line_over_steps_of_one_size() -> None:
    # The slope between two refreshes stands for that at the newer one, as the rule takes it.
    slopes = {2: 5.0, 1: 3.0}
    values = {0: 1.0, 1: 1.0 + slopes[1], 2: 1.0 + slopes[1] + slopes[2]}
    weights = PREDICTORS["adams-bashforth"].weights(3, (2, 1, 0))
    made = sum(w * values[at] for w, at in zip(weights, (2, 1, 0), strict=True))
    assert made == pytest.approx(values[2] + 1.5 * slopes[2] - 0.5 * slopes[1])


# ---- the fit -------------------------------------------------------------------------------------


def ridge(values: Sequence[float], at: Sequence[int], free: int = 2) -> np.ndarray:
    """The same fit at once, from all values."""
    basis = np.array([chebyshev_basis(one, STEPS) for one in at])
    penalty = np.diag([0.0] * free + [RIDGE] * (MOST_BUFFERS - free))
    return np.linalg.solve(basis.T @ basis + penalty, basis.T @ np.array(values))


@given(place=places(), seed=st.integers(0, 1000))
def test_the_recursion_is_the_ridge_regression_on_all_deltas(
    place: tuple[int, tuple[int, ...]], seed: int
) -> None:
    step, at = place
    if len(at) < 3:
        return
    values = np.random.default_rng(seed).normal(size=len(at)).tolist()
    held = fit(values, at)
    # The recursion begins with a constant, then a line: nothing is known yet of the curve.
    expected = ridge(values, at)
    assert held == pytest.approx(expected, abs=1e-6)
    weights = PREDICTORS["chebyshev"].weights(step, at, STEPS)
    assert len(weights) == MOST_BUFFERS


def test_the_fit_is_the_steadiest_where_deltas_are_noisy() -> None:
    at, errors = (12, 10, 8, 6, 4, 2, 0), dict.fromkeys(PREDICTORS, 0.0)
    for seed in range(200):
        noise = np.random.default_rng(seed).normal(scale=0.5, size=STEPS)
        for name in PREDICTORS:
            made = forecast(name, lambda step, n=noise: line(step) + n[int(step)], 13, at)  # type: ignore[misc]
            errors[name] += (made - line(13)) ** 2
    assert errors["chebyshev"] < errors["linear"] < errors["quadratic"]
    assert errors["chebyshev"] < errors["reuse"]


@pytest.mark.parametrize(("refreshes", "buffers"), [(1, 1), (2, 2), (3, 4), (9, 4)])
def test_a_fit_holds_its_coefficients_however_many_refreshes_there_were(
    refreshes: int, buffers: int
) -> None:
    assert PREDICTORS["chebyshev"].buffers(refreshes) == buffers
    assert len(chebyshev_gains(tuple(range(refreshes))[::-1], STEPS)) == buffers


def test_an_unknown_predictor_gets_the_near_match() -> None:
    with pytest.raises(ScheduleError, match=r"unknown predictor 'liner'.*'linear'"):
        predictor_named("liner")
    with pytest.raises(ScheduleError, match="unknown predictor 3"):
        predictor_named(3)
