"""The walk, shown deltas whose best weights are known."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch

from deltapass.errors import CalibrationError
from deltapass.schedule.explicit import ExplicitSchedule
from deltapass.schedule.rules import Span
from deltapass.schedule.weights import Weights
from deltapass.selector.weighing import RowWeights
from deltapass.sessions.deltas import Doubt, History, Lane, Row
from deltapass.sessions.report import Cause
from deltapass.sessions.trajectory import Place
from deltapass.tuning.fit.walk import ALL, Sharing, Walk, judged, walked, weighed

SPAN = Span(0, 2)
ROWS = ExplicitSchedule((None, None, SPAN, None, SPAN), "linear")
PLANNED = {2: (1, 0), 4: (3, 1, 0)}
FREE = Sharing(strength=0.0)


def row(step: int, streams: int = 1) -> Row:
    weigh = RowWeights(
        step=step, steps=5, taken=3, streams=streams, predictor=ROWS.forecast, planned=PLANNED[step]
    )
    return Row(SPAN, (), PLANNED[step][0], {SPAN: 3}, taken=3, weigh=weigh)


def walking(sharing: Sharing = FREE, samples: int = 1, rows: ExplicitSchedule = ROWS) -> Walk:
    walk = Walk(rows, sharing)
    walk.begin(samples)
    return walk


def place(step: int, branch: Any = (None, 0)) -> Place:
    lane = Lane(Doubt(Cause.NEW_TRAJECTORY, "new"))
    return Place(0, step, branch, 0, step - 1, lane)


def shown(
    walk: Walk,
    step: int,
    wanted: Sequence[Sequence[float]],
    *,
    seed: int = 0,
    branch: Any = (None, 0),
    at: Sequence[int] = (),
    noise: float = 0.0,
) -> tuple[tuple[float, ...], ...]:
    """Show deltas of which the true ones are weighted sums, one vector a stream."""
    generator = torch.Generator().manual_seed(seed)
    steps = tuple(at or PLANNED[step])
    held = [tuple(torch.randn(40, generator=generator) for _ in wanted) for _ in steps]
    truth = tuple(
        sum((w * deltas[stream] for w, deltas in zip(vector, held, strict=True)), torch.zeros(40))
        + noise * torch.randn(40, generator=generator)
        for stream, vector in enumerate(wanted)
    )
    return walk.weights(place(step, branch), row(step, len(wanted)), History(held, steps), truth)


def test_a_row_is_predicted_with_what_was_fitted_to_it() -> None:
    walk = walking()
    assert shown(walk, 2, [(1.5, -0.25)])[0] == pytest.approx((1.5, -0.25), abs=1e-5)
    assert shown(walk, 4, [(1.2, 0.1, -0.4)])[0] == pytest.approx((1.2, 0.1, -0.4), abs=1e-5)
    fits = walk.fits()
    assert [(step, fit.at) for (step, *_), fit in fits.items()] == list(PLANNED.items())
    assert all(fit.fitted < 1e-6 < fit.predicted and not fit.unseen for fit in fits.values())


def test_no_more_deltas_are_read_than_asked_for() -> None:
    walk = walking(Sharing(depth=2, strength=0.0))
    assert len(shown(walk, 4, [(1.0, 2.0, 0.0)])[0]) == 2


def test_streams_and_branches_share_their_weights_unless_told_otherwise() -> None:
    first, second = (1.0, 0.5), (0.5, -1.0)
    shared = walking()
    vectors = shown(shared, 2, [first, second])
    assert vectors[0] == vectors[1] and len(shared.fits()) == 1
    apart = walking(Sharing(per_stream=True, strength=0.0))
    found = shown(apart, 2, [first, second])
    assert found == (pytest.approx(first, abs=1e-5), pytest.approx(second, abs=1e-5))
    weights = weighed(ROWS, apart.fits())[2]
    assert weights is not None and len(weights.shared) == 2


def test_branches_have_their_own_where_told() -> None:
    walk = walking(Sharing(per_branch=True, strength=0.0))
    shown(walk, 2, [(1.0, 0.5)], branch=("cond", 0))
    shown(walk, 2, [(0.5, -1.0)], branch=("uncond", 0))
    weights = weighed(ROWS, walk.fits())[2]
    assert weights is not None
    own = dict(weights.branches)
    assert own["cond"][0] == pytest.approx((1.0, 0.5), abs=1e-5)
    assert own["uncond"][0] == pytest.approx((0.5, -1.0), abs=1e-5)
    assert weights.shared not in own.values()
    assert weights.of("cond", 2)[1] == pytest.approx((1.0, 0.5), abs=1e-5)


def test_every_batch_is_judged_by_weights_of_the_others() -> None:
    walk = walking()
    shown(walk, 2, [(1.0, 0.5)])
    assert not walk.fits()[2, ALL, ALL].unseen
    walk.begin(1)
    shown(walk, 2, [(1.0, 0.5)], seed=1)
    fit = walk.fits()[2, ALL, ALL]
    assert fit.unseen and fit.fitted < 1e-6
    walk.begin(1)
    shown(walk, 2, [(0.0, 3.0)], seed=2)  # another rule: what the others say is far from it
    fit = walk.fits()[2, ALL, ALL]
    assert fit.unseen and fit.fitted > 0.7


def test_the_predictor_counts_for_some_samples() -> None:
    """Two of its samples and one of ours: a third of the way; with six of ours three fourths."""
    for samples, part in ((1, 1 / 3), (6, 3 / 4)):
        walk = walking(Sharing(strength=2.0), samples)
        (found,) = shown(walk, 2, [(1.0, 0.5)])  # linear says 2, -1
        assert found == pytest.approx((2.0 - part, -1.0 + 1.5 * part), abs=1e-5)


def test_samples_of_all_batches_count() -> None:
    walk = walking(Sharing(strength=2.0))
    shown(walk, 2, [(1.0, 0.5)])
    walk.begin(5)
    (found,) = shown(walk, 2, [(1.0, 0.5)], seed=1)
    assert found == pytest.approx((1.25, 0.125), abs=1e-5)


def test_where_fitted_weights_do_worse_than_the_predictors_the_row_has_none() -> None:
    walk = walking()
    shown(walk, 2, [(0.0, 5.0)])
    walk.begin(1)
    shown(walk, 2, [(2.0, -1.0)], seed=1)  # just what linear predicts
    fit = walk.fits()[2, ALL, ALL]
    assert not fit.helps and fit.used == (2.0, -1.0)
    assert weighed(ROWS, walk.fits()) == (None,) * 5


def test_refreshes_elsewhere_than_planned_are_not_fitted_to() -> None:
    walk = walking()
    assert shown(walk, 4, [(7.0, 7.0, 7.0)], at=(3, 2, 1)) == ((2.0, -1.0),)
    shown(walk, 4, [(1.0, 0.5, 0.25)])
    before = walk.fits()
    vectors = shown(walk, 4, [(7.0, 7.0, 7.0)], at=(3, 2, 1), seed=1)
    assert vectors == ((2.0, -1.0),)
    assert walk.fits() == before


def test_the_schedule_to_walk_holds_as_many_deltas_as_are_fitted() -> None:
    walk = walked(ROWS, 3)
    assert walk.rows == ROWS.rows and walk.depths(walk.rows) == (0, 0, 2, 0, 3)
    assert walk.weights[4] == Weights(((1.0, 0.0, 0.0),))


def test_vectors_are_in_the_order_of_streams() -> None:
    wanted = [(1.0, 0.1 * stream) for stream in range(12)]
    walk = walking(Sharing(per_stream=True, strength=0.0))
    shown(walk, 2, wanted)
    weights = weighed(ROWS, walk.fits())[2]
    assert weights is not None
    assert weights.of("-", 12) == tuple(pytest.approx(vector, abs=1e-5) for vector in wanted)


def test_only_what_is_used_is_judged() -> None:
    """Branches that pull apart: what they share explains little, and no call goes by it."""
    walk = walking(Sharing(per_branch=True, strength=0.0))
    shown(walk, 2, [(1.0, 0.5)], branch=("cond", 0))
    shown(walk, 2, [(-1.0, 0.5)], branch=("uncond", 0))
    assert walk.fits()[2, ALL, ALL].fitted > 0.5
    assert {branch for _, branch, _ in judged(walk.fits())} == {"cond", "uncond"}
    shared = walking()
    shown(shared, 2, [(1.0, 0.5)])
    assert judged(shared.fits()) == shared.fits()


def test_few_weights_compete_with_a_predictor_that_reads_more() -> None:
    rows = ExplicitSchedule(ROWS.rows, "quadratic")
    walk = walking(Sharing(depth=1, strength=0.0), rows=rows)
    assert walk.schedule.depths(rows.rows) == (0, 0, 2, 0, 3)
    quadratic = rows.forecast.weights(4, PLANNED[4])
    assert len(shown(walk, 4, [quadratic])[0]) == 1
    fit = walk.fits()[4, ALL, ALL]
    assert fit.predicted < 1e-6 and not fit.helps
    assert fit.used == quadratic and fit.at == PLANNED[4]


def test_fallbacks_are_the_schedules_own_though_fits_are_drawn_to_a_line() -> None:
    rows = ExplicitSchedule(ROWS.rows, "reuse")
    walk = walking(Sharing(strength=2.0), rows=rows)
    assert shown(walk, 4, [(7.0, 7.0, 7.0)], at=(3, 2, 1)) == ((1.0,),)  # elsewhere than planned
    (found,) = shown(walk, 2, [(1.0, 0.5)])
    assert found == pytest.approx((2.0 - 1 / 3, -1.0 + 1.5 / 3), abs=1e-5)
    walk = walking(rows=rows)
    shown(walk, 2, [(0.0, 5.0)])
    walk.begin(1)
    shown(walk, 2, [(1.0, 0.0)], seed=1)  # just what reuse predicts
    assert walk.fits()[2, ALL, ALL].used == (1.0, 0.0)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_deltas_that_are_not_finite_are_an_error(value: float) -> None:
    with pytest.raises(CalibrationError, match="deltas of step 2, branch cond, are infinite or"):
        shown(walking(), 2, [(value, 1.0)], branch=("cond", 0))
