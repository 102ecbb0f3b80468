"""Predictors: the next delta as a weighted sum of those of earlier refreshes.

Every forecast here has one linear form, sum over k of w_k * delta_k, newest delta first. A
predictor says how many buffers a stream needs and what the weights are, for the steps at which the
deltas were really made: refreshes may lie unevenly. Pure Python: nothing here knows a tensor.

Source: "reuse" is Eq. 3 of Delta-DiT; the others are textbook extrapolations of a series of values.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final, final

from deltapass.schedule.checks import unknown_name

MOST_BUFFERS: Final = 4  # of one stream: what a cached variant can be made for
ALL: Final = 1_000_000  # deltas that are read where every one made so far counts
RIDGE: Final = 0.1  # penalty on the curved terms of the Chebyshev fit
CONTRACTION: Final = 0.5  # of the Hermite polynomials, as published
STRAIGHT: Final = 2  # its first terms, a constant and a line, are free

Weigh = Callable[[int, Sequence[int], int], tuple[float, ...]]


@final
@dataclass(frozen=True, kw_only=True, slots=True)
class Predictor:
    """How the delta of a cached step is forecast.

    Attributes:
        name: By which it is chosen.
        depth: Buffers a stream needs; 1 adds the newest delta as it is.
        weigh: Step, steps of the refreshes (newest first), length of the trajectory -> weights.
        accumulates: Whether the buffers are the coefficients of a fit to all deltas so far, brought
            up to date at every refresh, rather than the newest deltas themselves.
    """

    name: str
    depth: int
    weigh: Weigh
    accumulates: bool = False

    @property
    def reads(self) -> int:
        """How many of the newest refreshes count."""
        return ALL if self.accumulates else self.depth

    @property
    def taken(self) -> int:
        """Weighted buffers a stream that a variant needs; 0: the newest delta, unweighted."""
        return 0 if self.depth == 1 else self.depth

    def weights(self, step: int, at: Sequence[int], steps: int = 0) -> tuple[float, ...]:
        """One weight for every buffer that is held, newest first.

        Args:
            step: The cached step.
            at: Steps of the refreshes so far, newest first; more than are needed do no harm.
            steps: Length of the trajectory; read by predictors that accumulate.
        """
        return self.weigh(step, at[: self.reads], steps)

    def buffers(self, refreshes: int) -> int:
        """Buffers a stream holds after a number of refreshes."""
        if not self.accumulates or refreshes <= STRAIGHT:
            return min(refreshes, self.depth)
        return self.depth


def polynomial(step: int, at: Sequence[int], _steps: int = 0) -> tuple[float, ...]:
    """Weights of the polynomial through all of the deltas (Lagrange)."""
    return tuple(
        math.prod((step - other) / (here - other) for other in at if other != here) for here in at
    )


def adams_bashforth(step: int, at: Sequence[int], _steps: int = 0) -> tuple[float, ...]:
    """Weights of the two-step Adams-Bashforth rule, for steps of any size.

    The slopes are those between neighbouring refreshes. With h from the newest refresh to the
    step and g between the two newest, d = d0 + h * ((1 + h/2g) * slope0 - h/2g * slope1).
    """
    if len(at) < 3:
        return polynomial(step, at)
    ahead, gap, before = step - at[0], at[0] - at[1], at[1] - at[2]
    lead = ahead / (2 * gap)
    newer, older = ahead * (1 + lead) / gap, ahead * lead / before
    return 1 + newer, -newer - older, older


def taylor(step: int, at: Sequence[int], _steps: int = 0) -> tuple[float, ...]:
    """Weights of the Taylor series of second order, its derivatives by finite differences.

    Source:
        TaylorSeer, arXiv:2503.06923.
    """
    ahead = step - at[0]
    return _by_differences(at, ahead, ahead**2 / 2)


def hermite(step: int, at: Sequence[int], _steps: int = 0) -> tuple[float, ...]:
    """Weights of the same differences under contracted Hermite polynomials in place of powers.

    Not even a line is met exactly: the contraction, CONTRACTION^k, shortens every step.

    Source:
        HiCache, arXiv:2508.16984: H_k(s x) s^k / k!, with H_1 = 2x and H_2 = 4x^2 - 2.
    """
    ahead, part = step - at[0], CONTRACTION**2
    return _by_differences(at, 2 * part * ahead, part * (2 * part * ahead**2 - 1))


def _by_differences(at: Sequence[int], first: float, second: float) -> tuple[float, ...]:
    """Weights of d0 + first * D1 + second * D2, the divided differences of the newest deltas."""
    if len(at) == 1:
        return (1.0,)
    gap = at[0] - at[1]
    if len(at) == 2:
        return 1 + first / gap, -first / gap
    older = at[1] - at[2]
    bent = second / gap
    return (
        1 + first / gap + bent / gap,
        -first / gap - bent / gap - bent / older,
        bent / older,
    )


def chebyshev(step: int, at: Sequence[int], steps: int = 0) -> tuple[float, ...]:
    """Values of the Chebyshev polynomials at a step: the weights of the fit's coefficients."""
    held = PREDICTORS["chebyshev"].buffers(len(at))
    return tuple(chebyshev_basis(step, steps)[:held])


def chebyshev_gains(at: Sequence[int], steps: int) -> tuple[float, ...]:
    """What the newest delta's error of forecast adds to every coefficient of the fit.

    A ridge regression on Chebyshev polynomials by recursive least squares: coefficients c, basis
    f, A = sum of f f' plus the penalty; c += A^-1 f * (delta - f'c). No delta need be kept.

    Args:
        at: Steps of all refreshes, newest first.
        steps: Length of the trajectory.
    """
    import numpy as np  # here: commands that do no work read predictors' names, and start at once

    if len(at) == 1:
        return (1.0,)
    basis = np.array([chebyshev_basis(step, steps) for step in at])
    penalty = np.diag([0.0] * STRAIGHT + [RIDGE] * (MOST_BUFFERS - STRAIGHT))
    gains = np.linalg.solve(basis.T @ basis + penalty, basis[0])
    held = PREDICTORS["chebyshev"].buffers(len(at))
    return tuple(float(gain) for gain in gains[:held])


def chebyshev_basis(step: int, steps: int) -> list[float]:
    """T_0 to T_3 at a step, with the trajectory laid from -1 to 1."""
    x = 2.0 * step / max(1, steps - 1) - 1.0
    return [1.0, x, 2.0 * x * x - 1.0, 4.0 * x**3 - 3.0 * x]


REUSE: Final = Predictor(name="reuse", depth=1, weigh=polynomial)
PREDICTORS: Final[Mapping[str, Predictor]] = MappingProxyType(
    {
        "reuse": REUSE,
        "linear": Predictor(name="linear", depth=2, weigh=polynomial),
        "quadratic": Predictor(name="quadratic", depth=3, weigh=polynomial),
        "adams-bashforth": Predictor(name="adams-bashforth", depth=3, weigh=adams_bashforth),
        "taylor": Predictor(name="taylor", depth=3, weigh=taylor),
        "hermite": Predictor(name="hermite", depth=3, weigh=hermite),
        "chebyshev": Predictor(
            name="chebyshev", depth=MOST_BUFFERS, weigh=chebyshev, accumulates=True
        ),
    }
)


def predictor_named(name: object) -> Predictor:
    """The predictor of that name in PREDICTORS.

    Raises:
        ScheduleError: If there is none.
    """
    if not isinstance(name, str) or name not in PREDICTORS:
        raise unknown_name("predictor", name, tuple(PREDICTORS))
    return PREDICTORS[name]
