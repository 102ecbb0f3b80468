"""schedule/weights.py, and weights in explicit schedules: what they hold, refuse, in files too."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from deltapass.errors import ScheduleError, ScheduleFileError
from deltapass.schedule.explicit import ExplicitSchedule
from deltapass.schedule.files import load_schedule, save_schedule, schedule_content
from deltapass.schedule.made_for import MadeFor, Sampler
from deltapass.schedule.predictors import PREDICTORS
from deltapass.schedule.rules import Schedule, Span
from deltapass.schedule.weights import Weights

DEEP = Span(2, 6)
TWO = Weights(((1.5, -0.5),))


def test_one_vector_serves_all_streams_and_branches() -> None:
    assert TWO.of("cond", 3) == ((1.5, -0.5),) * 3
    assert TWO.depth == 2


def test_streams_and_branches_may_have_vectors_of_their_own() -> None:
    weights = Weights(((1.0,), (0.9,)), branches=(("#1", ((0.5,),)),))
    assert weights.of("-", 2) == ((1.0,), (0.9,))
    assert weights.of("#1", 2) == ((0.5,), (0.5,))
    with pytest.raises(ScheduleError, match=r"weights for 2 streams, its span has 3.*Calibrate"):
        weights.of("-", 3)


@pytest.mark.parametrize(
    ("shared", "branches"),
    [
        ((), ()),
        (((),), ()),
        (((1.0,) * 5,), ()),
        (((1.0,), (1.0, 2.0)), ()),
        (((float("nan"),),), ()),
        (((float("inf"),),), ()),
        (((1.0,),), (("cond", ((1.0, 0.0),)),)),
        (((1.0,),), (("cond", ()),)),
    ],
)
def test_what_no_variant_could_weigh_is_refused(shared: Any, branches: Any) -> None:
    with pytest.raises(ScheduleError, match="1 to 4 numbers a stream"):
        Weights(shared, branches)


@pytest.mark.parametrize(
    ("rows", "weights", "match"),
    [
        ((None, DEEP), (None,), "weights for 1 steps, and 2 rows"),
        ((None, None, DEEP), (None, TWO, None), "row 1 refreshes and has weights"),
        ((None, DEEP), (None, TWO), "row 1 weighs 2 deltas, and 1 refreshes come before"),
    ],
)
def test_weights_must_fit_their_rows(rows: Any, weights: Any, match: str) -> None:
    with pytest.raises(ScheduleError, match=match):
        ExplicitSchedule(rows, weights=weights)


def test_a_fit_takes_no_weights_of_rows() -> None:
    with pytest.raises(ScheduleError, match="'chebyshev' keeps no deltas"):
        ExplicitSchedule((None, None, DEEP), "chebyshev", (None, None, TWO))


def test_depths_are_those_of_the_rows() -> None:
    rows = (None, DEEP, None, DEEP)
    schedule = ExplicitSchedule(rows, "linear", (None, None, None, Weights(((0.9,),))))
    assert schedule.depths(rows) == (0, 2, 0, 1)
    assert schedule.taken == 2
    assert ExplicitSchedule(rows).taken == 0
    assert ExplicitSchedule(rows, weights=(None, Weights(((1.0,),)), None, None)).taken == 1


# ---- files -------------------------------------------------------------------------------------


FITTED = ExplicitSchedule(
    (None, None, DEEP, Span(0, 4)),
    "linear",
    (None, None, TWO, Weights(((1.25, -0.25), (1.0, 0.1)), (("cond", ((1.1, -0.1),)),))),
    MadeFor(blocks=6, structure="0123", steps=4, sampler=Sampler(scheduler="DDIM", guidance=2.0)),
)


@pytest.mark.parametrize(
    "schedule",
    [
        FITTED,
        *(ExplicitSchedule((None, None, DEEP), name) for name in PREDICTORS),
        *(Schedule(interval=3, predictor=name) for name in PREDICTORS),
    ],
)
def test_a_file_reads_back_equal(schedule: ExplicitSchedule | Schedule, tmp_path: Path) -> None:
    save_schedule(schedule, tmp_path / "one.json")
    assert load_schedule(tmp_path / "one.json") == schedule


def test_a_plain_table_is_written_as_before() -> None:
    assert schedule_content((None, DEEP)) == {"table": ["refresh", "2:6"]}


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ('{"table": ["refresh"], "weight": []}', "unknown key 'weight'.*'weights'"),
        ('{"table": ["refresh"], "weights": 3}', "weights is 3. Give a list"),
        ('{"table": ["refresh", "0:1"], "weights": [null, 3]}', "weights of row 1: .*'shared'"),
        (
            '{"table": ["refresh", "0:1"], "weights": [null, {"shared": [["a"]]}]}',
            "weights of row 1: Expected `float`",
        ),
        (
            '{"table": ["refresh", "0:1"], "weights": [null, {"shared": [[1.0]], "x": 1}]}',
            "unknown field `x`",
        ),
        ('{"table": ["refresh"], "predictor": "cubic"}', "unknown predictor 'cubic'"),
        ('{"schedule": "delta-dit", "predictor": "cubic"}', "unknown predictor 'cubic'"),
    ],
)
def test_what_a_file_says_wrongly_is_named(text: str, match: str, tmp_path: Path) -> None:
    (tmp_path / "bad.json").write_text(text)
    with pytest.raises(ScheduleFileError, match=match):
        load_schedule(tmp_path / "bad.json")
