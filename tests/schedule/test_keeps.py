"""schedule/keeps.py: deltas or features, in spans, schedules, files and options."""

from __future__ import annotations

from pathlib import Path

import pytest

from deltapass.errors import ScheduleError, ScheduleFileError
from deltapass.options import parse_options
from deltapass.schedule.budget import Budget
from deltapass.schedule.explicit import ExplicitSchedule
from deltapass.schedule.files import load_schedule, row_text, save_schedule, table_text
from deltapass.schedule.presets import delta_cache, faster_diffusion, named_schedule
from deltapass.schedule.rules import Schedule, Span, region_span
from deltapass.schedule.weights import Weights

DELTA, FEATURE = Span(7, 28), Span(7, 28, "feature")
ROWS = (None, DELTA, FEATURE, Span(0, 21, "feature"), Span(4, 25, "feature"))


def test_a_delta_is_never_taken_for_a_feature() -> None:
    assert DELTA != FEATURE
    assert len({DELTA, FEATURE, Span(7, 28, "delta")}) == 2
    assert sorted([FEATURE, DELTA]) == [DELTA, FEATURE]
    assert [str(span) for span in (DELTA, FEATURE)] == ["blocks 7..27", "blocks 7..27 (feature)"]


@pytest.mark.parametrize("value", ["features", None, 1])
def test_other_words_are_refused(value: object) -> None:
    for make in (
        lambda: Span(0, 2, value),  # type: ignore[arg-type]
        lambda: Schedule(keeps=value),  # type: ignore[arg-type]
        lambda: Budget(share=0.6, keeps=value),  # type: ignore[arg-type]
        lambda: named_schedule("delta-dit", keeps=value),
    ):
        with pytest.raises(ScheduleError, match="It must be one of delta, feature"):
            make()


def test_a_schedule_keeps_one_in_all_its_spans() -> None:
    kept = Schedule(keeps="feature")
    assert kept.table(20, 28) == tuple(
        row and Span(row.start, row.stop, "feature") for row in Schedule().table(20, 28)
    )
    assert kept.at(1, 1.0, 28) == FEATURE
    assert kept.spans(28) == (FEATURE, Span(0, 21, "feature"))
    assert region_span("middle", 21, 28, "feature") == Span(3, 24, "feature")


def test_faster_diffusion_reuses_the_first_blocks_at_every_other_step() -> None:
    schedule = named_schedule("faster-diffusion", cached_blocks=14)
    assert schedule == faster_diffusion(cached_blocks=14)
    assert schedule.table(20, 28) == (None, Span(0, 14, "feature")) * 10
    assert faster_diffusion().table(4, 28)[1] == Span(0, 4, "feature")  # as the paper has it
    with pytest.raises(ScheduleError, match="does not take all of: keeps"):
        named_schedule("faster-diffusion", keeps="delta")


def test_deepcache_is_the_feature_of_the_deep_blocks() -> None:
    assert named_schedule("deepcache", cached_blocks=11).spans(12) == (Span(1, 12, "feature"),)


def test_words_of_a_table_tell_features() -> None:
    assert [row_text(row, 28) for row in ROWS] == ["R", "d21", "fd21", "fs21", "f4:25"]
    assert table_text((None, FEATURE) * 3, 28) == "(R fd21)x3"


def test_files_hold_features(tmp_path: Path) -> None:
    path = tmp_path / "rows.json"
    for schedule in (ExplicitSchedule(ROWS), faster_diffusion(cached_blocks=14)):
        save_schedule(schedule, path)
        assert load_schedule(path) == schedule
    written = tmp_path / "rows.toml"
    rows = '"refresh", "deep:21", "feature deep:21", "feature shallow:21", "feature 4:25"'
    written.write_text(f"blocks = 28\ntable = [{rows}]\n")
    assert load_schedule(written) == ExplicitSchedule(ROWS)
    for wrong in ("features 4:25", "feature", "feature refresh", "feature  4:25", "delta 4:25"):
        written.write_text(f'table = ["refresh", "{wrong}"]\n')
        with pytest.raises(ScheduleFileError, match="'cross-attention' and a space"):
            load_schedule(written)


def test_files_and_words_hold_cross_attention(tmp_path: Path) -> None:
    kept = Span(0, 28, "cross-attention")
    rows = ExplicitSchedule((None, kept, FEATURE, DELTA))
    save_schedule(rows, tmp_path / "rows.json")
    assert load_schedule(tmp_path / "rows.json") == rows
    written = tmp_path / "rows.toml"
    written.write_text('blocks = 28\ntable = ["refresh", "cross-attention deep:28"]\n')
    assert load_schedule(written) == ExplicitSchedule((None, kept))
    assert (str(kept), row_text(kept, 28)) == ("blocks 0..27 (cross-attention)", "xd28")


def test_the_option_changes_all_spans() -> None:
    def rows(keeps: str) -> ExplicitSchedule:
        given = {"schedule": ExplicitSchedule(ROWS), "keeps": keeps}
        schedule = parse_options(given).schedule
        assert isinstance(schedule, ExplicitSchedule)
        return schedule

    assert {row.keeps for row in rows("delta").rows if row} == {"delta"}
    assert [(row.start, row.stop) for row in rows("feature").rows if row] == [
        (row.start, row.stop) for row in ROWS if row
    ]
    options = {"schedule": "delta-cache-deep", "keeps": "feature", "predictor": "linear"}
    kept = delta_cache("deep", keeps="feature", predictor="linear")
    assert parse_options(options).schedule == kept
    budget = parse_options({"budget": 0.6, "keeps": "feature"}).schedule
    assert budget == Budget(share=0.6, keeps="feature")


def test_weights_fitted_to_deltas_are_not_for_features() -> None:
    weights = (None, Weights(((1.0,),)))
    fitted = ExplicitSchedule((None, DELTA), weights=weights)
    assert parse_options({"schedule": fitted, "keeps": "delta"}).schedule == fitted
    with pytest.raises(ScheduleError, match="weights are not fitted to a feature"):
        parse_options({"schedule": fitted, "keeps": "feature"})


def test_a_budget_counts_what_features_save() -> None:
    def macs(span: Span | None) -> float:
        """Ten blocks of one each; a feature needs those behind it alone."""
        if span is None:
            return 10.0
        return 10.0 - (span.stop if span.is_feature else len(span))

    deep = Budget(share=0.6, boundary=1.0).choose(20, 10, macs)
    kept = Budget(share=0.6, boundary=1.0, keeps="feature").choose(20, 10, macs)
    assert (deep.interval, deep.cached_blocks) == (2, 8)
    assert (kept.interval, kept.cached_blocks, kept.keeps) == (2, 1, "feature")
