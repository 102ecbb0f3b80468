"""The evidence: a suite made of arguments, its record as an entry, the tables and the page."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import equal_time
import msgspec
import numpy as np
import pytest
from bench_records import record as suite_record
from bench_records import row as suite_row
from evidence import tables
from evidence.entry import entry_of
from evidence.meanings import MEASURES
from evidence.page import PAGE, filled, newest
from evidence.suite import NAMED, specs, suite_of

from deltapass.bench.methods.method import Context, Method
from deltapass.bench.methods.named import method_of
from deltapass.bench.record import Record, Row
from deltapass.errors import BenchError
from deltapass.schedule.explicit import ExplicitSchedule
from deltapass.schedule.files import save_schedule
from deltapass.schedule.rules import Schedule, Span

# ---- what is compared ----------------------------------------------------------------------------


def made(name: str, folder: Path, steps: int = 20) -> list[Method]:
    context = Context(model="toy", steps=steps, folder=folder)
    return [method_of(spec, context) for spec in specs(name, folder)]


def test_a_suite_begins_with_the_full_plain_run_and_names_no_step_count_twice() -> None:
    words = ["--plain", "8", "13", "20", "13", "--methods", "paper", "--images", "50"]
    suite = suite_of(equal_time.parsed(words))
    assert [(spec.label or spec.name, spec.steps) for spec in suite.methods] == [
        ("plain", None), ("plain", 13), ("plain", 8), ("paper", None),
    ]  # fmt: skip
    assert (suite.steps, suite.images, suite.fine_steps) == (20, 50, 60)


def test_names_of_the_tables_are_the_schedules_they_always_were(tmp_path: Path) -> None:
    assert [each.schedule for each in made("paper", tmp_path)] == [Schedule()]
    assert [each.schedule for each in made("linear", tmp_path)] == [Schedule(predictor="linear")]
    assert [each.label for name in (*NAMED, "balanced") for each in made(name, tmp_path)] == [
        "paper", "linear", "balanced",
    ]  # fmt: skip


def test_tuned_are_all_schedules_beside_the_weights(tmp_path: Path) -> None:
    (tmp_path / "schedules").mkdir()
    table = ExplicitSchedule((None, Span(0, 3), None))
    for name in ("b", "a"):
        save_schedule(table, tmp_path / "schedules" / f"{name}.json")
    found = made("tuned", tmp_path, steps=3)
    assert [each.label for each in found] == ["a", "b"]
    assert found[0].schedule == table
    with pytest.raises(BenchError):
        made("nonsense", tmp_path)


# ---- an entry ------------------------------------------------------------------------------------


TO_REAL = ("psnr_fine", "right", "kid")  # all but what says nothing of the reference


def of(name: str, share: float, level: float, **given: Any) -> Row:
    """A row whose every value is `level`, up to what all rows share."""
    shared = np.random.default_rng(0).normal(0, 0.01, 40)
    names = (
        ("psnr", "psnr_fine", "right", "kid") if name != "plain" else ("psnr_fine", "right", "kid")
    )
    return suite_row(name, share, dict.fromkeys(names, shared + level), **given)


def entry(*rows: Row) -> dict[str, Any]:
    suite = {"name": "equal-time", "steps": 20, "fine_steps": 60, "timed": 10, "rounds": 10}
    environment = {"hardware": "a machine", "torch": "2", "load_average": [0.5, None, 2.0]}
    found: Record = suite_record(*rows)
    found = msgspec.structs.replace(found, suite=suite, environment=environment)
    return json.loads(json.dumps(entry_of(found, "a judge")))  # type: ignore[no-any-return]


PLAIN = of("plain", 1.0, 0.9)
FEWER = tuple(of(f"plain-{n}", n / 20, level, label=f"plain, {n} steps", steps=n)
              for n, level in ((7, 0.1), (10, 0.5), (13, 0.9)))  # fmt: skip


def ours(level: float, **given: Any) -> Row:
    return of("ours", 0.5, level, schedule=(None, (0, 3)), equal_time="plain-10", **given)


def test_tables_say_how_a_method_stands() -> None:
    text = tables.markdown(entry(PLAIN, *FEWER, ours(0.5)))
    assert "| to 20 plain steps, dB | to 60 plain steps, dB |" in text
    assert "| ours | 0.500 | 2.00x | 0.5 (0.5 to 0.5) |" in text
    assert "| ours | 10 | same (+0.0 to +0.0) |" in text
    # of the distance less is better: worse than the 7 steps that have less of it
    assert "| ours | 10 | 10 | 10 | none | none |" in text
    worse = tables.markdown(entry(PLAIN, *FEWER, ours(0.1)))
    assert "| ours | 10 | **worse** (-0.4 to -0.4) |" in worse
    assert "| plain | 1.000 | 1.00x |  | 0.9 (0.9 to 0.9) |" in text  # near itself says nothing


def test_an_entry_has_every_pair_and_what_was_measured_where() -> None:
    found = entry(PLAIN, *FEWER, ours(0.5))
    row = found["methods"][-1]
    assert row["less_plain"]["7"]["right"]["verdict"] == "better"
    assert row["less_plain"]["7"]["kid"]["verdict"] == "worse"
    assert row["less_plain"]["13"]["right"]["mean"] == pytest.approx(-0.4)
    assert row["as_good_as_plain_steps"]["right"] == 10
    assert row["equal_time_plain_steps"] == 10
    assert found["timed"]["load_average"] == [0.5, 2.0]
    assert found["plain_over_itself"] == {"median": 1.0, "low": 0.99, "high": 1.01}
    assert found["seconds"]["ours"]["wall"] == [5.0, 5.0, 5.0]
    assert (found["images"], found["first_seed"], found["judge"]) == (40, 0, "a judge")


def test_without_times_no_method_has_a_rival() -> None:
    rows = [msgspec.structs.replace(row, times=None) for row in (PLAIN, *FEWER, ours(0.5))]
    found = entry(*rows)
    assert found["timed"] is None
    assert found["methods"][-1]["equal_time_plain_steps"] is None
    assert "| ours |  |  | 0.5" in tables.markdown(found)


def test_measures_mean_what_they_mean_in_suites() -> None:
    shown = [(each.title, each.scale, each.digits, each.margin) for each in MEASURES.values()]
    assert shown == [
        ("to {steps} plain steps, dB", 1.0, 1, 0.25),
        ("to {fine} plain steps, dB", 1.0, 1, 0.25),
        ("right, %", 100, 1, 0.01),
        ("off the exact drawing, %", 100, 3, 0.0001),
        ("KID-EffLite0 x 1000", 1000, 2, 0.0005),
    ]


# ---- the page ------------------------------------------------------------------------------------


def test_the_page_is_what_the_committed_records_say() -> None:
    assert filled(PAGE.read_text()) == PAGE.read_text()


def test_the_newest_record_of_a_model_is_the_page_s(tmp_path: Path) -> None:
    for name in ("toy_b_2026-01-02", "toy_a_2026-01-03", "toys_a_2026-01-04"):
        (tmp_path / f"equal-time-{name}.json").write_text("{}")
    assert newest("toy", tmp_path).stem == "equal-time-toy_a_2026-01-03"
    with pytest.raises(FileNotFoundError, match="no record equal-time-other"):
        newest("other", tmp_path)


def test_a_page_is_filled_where_it_says_and_filled_again_alike(tmp_path: Path) -> None:
    held = entry(PLAIN, *FEWER, ours(0.5))
    (tmp_path / "equal-time-toy_a_2026-01-03.json").write_text(json.dumps(held))
    page = "before\n<!-- record: toy -->\nold\n<!-- end -->\nafter\n"
    found = filled(page, tmp_path)
    assert found.startswith("before\n<!-- record: toy -->\n") and found.endswith(
        "<!-- end -->\nafter\n"
    )
    assert "old" not in found
    assert "load average was 0.5 to 2.0" in found
    assert tables.markdown(held) in found
    assert filled(found, tmp_path) == found
