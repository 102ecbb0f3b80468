from __future__ import annotations

from typing import Any

import pytest

pytest.importorskip("optuna")

from deltapass.errors import OptionError
from deltapass.schedule.rules import Span
from deltapass.tuning.search.candidates import (
    BOUNDARY,
    CACHED,
    FAMILY,
    FORECAST,
    INTERVAL,
    ROWS,
    RULE,
    Candidate,
    Forecast,
    Space,
    default_spans,
    span_named,
)

SPACE = Space(steps=6, blocks=8, spans=default_spans(8), forecasts=("fitted-3", "reuse"))


def test_the_default_spans_are_full_deep_shallow_and_middle() -> None:
    parts = (Span(2, 8), Span(0, 6), Span(1, 7), Span(4, 8), Span(0, 4), Span(2, 6))
    assert default_spans(8) == (Span(0, 8), *parts)
    assert default_spans(1) == (Span(0, 1),)


@pytest.mark.parametrize(
    ("text", "span"),
    [
        ("full", Span(0, 8)),
        ("deep:3", Span(5, 8)),
        ("shallow:3", Span(0, 3)),
        ("middle:4", Span(2, 6)),
        ("2:5", Span(2, 5)),
        (Span(1, 4), Span(1, 4)),
    ],
)
def test_a_span_is_named_in_words(text: Any, span: Span) -> None:
    assert span_named(text, 8) == span


@pytest.mark.parametrize("text", ["", "deep", "deep:0", "deep:9", "5:5", "2:9", "-1:2", Span(0, 9)])
def test_what_is_no_span_of_the_model_is_an_error(text: Any) -> None:
    with pytest.raises(OptionError, match="within 8 blocks"):
        span_named(text, 8)


def test_rows_and_parameters_say_the_same() -> None:
    rows = (None, Span(0, 8), Span(2, 8), None, Span(0, 4), Span(1, 7))
    candidate = Candidate(rows, "fitted-3")
    params = SPACE.params(candidate)
    assert {*params} == {*SPACE.names(ROWS)} and {*params} <= {*SPACE.distributions()}
    assert SPACE.candidate(params) == candidate
    assert candidate.refreshes == (0, 3) and candidate.made_at(4) == (3, 0)


def test_the_papers_rule_is_a_candidate_like_any_other() -> None:
    params = {FAMILY: RULE, FORECAST: "reuse", INTERVAL: 3, CACHED: 4, BOUNDARY: 3}
    assert {*params} == {*SPACE.names(RULE)}
    deep, shallow = Span(4, 8), Span(0, 4)
    found = SPACE.candidate(params)
    assert {*found.rows} == {None, deep, shallow} and found.forecast == "reuse"
    assert SPACE.candidate(SPACE.params(found)) == found


def test_without_both_regions_there_is_no_rule_to_search() -> None:
    only = Space(steps=6, blocks=8, spans=(Span(0, 8), Span(4, 8)), forecasts=("reuse",))
    assert only.sizes == (8,) and only.families == (ROWS, RULE)
    assert Space(steps=6, blocks=8, spans=(Span(4, 8),), forecasts=("reuse",)).families == (ROWS,)


@pytest.mark.parametrize(
    ("name", "depth", "taken"),
    [("reuse", 1, 0), ("linear", 2, 2), ("fitted-1", 1, 1), ("fitted-4", 4, 4)],
)
def test_a_forecast_is_a_predictor_or_fitted_weights(name: str, depth: int, taken: int) -> None:
    found = Forecast.named(name)
    assert (found.depth, found.taken) == (depth, taken)


@pytest.mark.parametrize("name", ["", "cubic", "fitted", "fitted-0", "fitted-5", "fitted-33"])
def test_other_forecasts_are_errors(name: str) -> None:
    with pytest.raises(OptionError, match="fitted-1 to fitted-4"):
        Forecast.named(name)
