"""tuning/search/{tuned,pareto}.py: the table, the numbers and the picture of a search."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from deltapass.schedule.explicit import ExplicitSchedule
from deltapass.schedule.rules import Span
from deltapass.tuning.search.costs import MACS, Costs
from deltapass.tuning.search.metrics import METRICS
from deltapass.tuning.search.pareto import save_pareto
from deltapass.tuning.search.tuned import (
    FOUND,
    LINEAR,
    PAPER,
    PLAIN_STEPS,
    Found,
    Measured,
    Tuned,
    bootstrap,
)

ROWS = (None, None, Span(0, 4), None, Span(0, 4))


def measured(name: str, kind: str, cost: float, steps: int, *values: float) -> Measured:
    return Measured(name=name, kind=kind, steps=steps, cost=cost, values=values, seconds=cost * 2)


RESULT = Tuned(
    found=(Found(goal="0.6 of the MACs", schedule=ExplicitSchedule(ROWS), cost=0.6, value=40.0),),
    measured=(
        measured("4 plain steps", PLAIN_STEPS, 0.8, 4, 42.0, 44.0),
        measured("2 plain steps", PLAIN_STEPS, 0.4, 2, 29.0, 31.0),
        measured("3 plain steps", PLAIN_STEPS, 0.6, 3, 34.0, 36.0),
        measured("paper's schedule", PAPER, 0.7, 5, 30.0, 33.0),
        measured("the same, linear", LINEAR, 0.7, 5, 33.0, 34.0),
        measured("found: 0.6 of the MACs", FOUND, 0.6, 5, 38.0, 40.0),
    ),
    trials=((0.6, 38.5), (0.6, 40.0), (0.5, 33.0)),
    missed=(),
    counts=(3, 2),
    compiles=(1, 0),
    costs=Costs(unit=MACS, steps=5, full=1.0, spans={Span(0, 4): 0.0}),
    metric=METRICS["psnr"],
    blocks=4,
    interrupted=False,
    seconds=12.0,
)


def test_plain_steps_tell_what_a_value_is_worth() -> None:
    assert RESULT.plain_curve == [(2, 0.4, 30.0), (3, 0.6, 35.0), (4, 0.8, 43.0)]
    assert RESULT.equivalent(35.0) == 3.0 and RESULT.equivalent(39.0) == 3.5
    assert RESULT.equivalent(29.0) is None and RESULT.equivalent(44.0) is None


def test_the_table_says_all_of_it() -> None:
    text = " ".join(str(RESULT).split())
    assert "5 trials, 2 of them stopped early, in 12 s; 1 graph compiled in the first, 0" in text
    assert "0.6 of the MACs: 1.67x at 40.0 dB, R R d4 R d4" in text
    assert "found: 0.6 of the MACs 0.600 1.67x 1.20 39.00 38.00 to 40.00 3.5 plain steps" in text


def test_the_numbers_are_json() -> None:
    content = json.loads(json.dumps(RESULT.to_dict()))
    assert content["found"][0]["schedule"]["table"][2] == "0:4"
    assert content["measured"][-1]["as_near_as_plain_steps"] == 3.5
    assert content["compiles"] == [1, 0]


def test_an_interval_holds_the_mean_as_often_as_it_says() -> None:
    """Of numbers drawn anew many times, for a known mean."""
    import numpy as np

    rng = np.random.default_rng(1)
    held = [bootstrap(rng.normal(5.0, 2.0, 40).tolist()) for _ in range(200)]
    share = sum(low <= 5.0 <= high for low, high in held) / len(held)
    assert 0.88 < share < 0.99
    assert bootstrap([3.0, 3.0]) == (3.0, 3.0)


def words(result: Tuned, path: Path) -> str:
    """What stands in the picture, letter by letter as text."""
    matplotlib = pytest.importorskip("matplotlib")
    with matplotlib.rc_context({"svg.fonttype": "none"}):
        save_pareto(result, path / "picture.svg")
    return (path / "picture.svg").read_text()


def test_the_picture_names_what_it_shows(tmp_path: Path) -> None:
    text = words(RESULT, tmp_path)
    for said in (
        "plain steps<",
        "paper's schedule<",
        "paper's schedule, linear<",
        ">found<",
        "1.67x<",
        "3 candidates",
        "2 held-out samples, 95 % intervals",
        "PSNR, dB to the plain samples",
        "share of the plain trajectory's MACs",
    ):
        assert said in text


def test_a_search_that_was_cut_short_has_a_picture_too(tmp_path: Path) -> None:
    text = words(replace(RESULT, measured=(), interrupted=True), tmp_path)
    assert "before anything was measured" in text and "found, on the seeds of the search" in text
    words(replace(RESULT, measured=(), found=(), trials=()), tmp_path)


def test_plain_steps_are_a_curve(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("matplotlib")
    from matplotlib.figure import Figure

    kept: list[Figure] = []
    monkeypatch.setattr(Figure, "savefig", lambda self, *_, **__: kept.append(self))
    save_pareto(RESULT, tmp_path / "picture.png")
    (axes,) = kept[0].axes
    curve = next(line for line in axes.lines if line.get_linestyle() == "-")
    assert list(curve.get_xdata()) == [0.4, 0.6, 0.8]
    assert list(curve.get_ydata()) == [30.0, 35.0, 43.0]
    lowest, highest = axes.get_ylim()
    assert lowest < 29.0 and highest > 44.0
