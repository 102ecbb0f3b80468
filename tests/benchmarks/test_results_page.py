"""docs/results.md and the README say what the records say."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest
import results_page
from bench_records import record, row, values
from results_page import PAGE, README, RESULTS, filled, newest, page

from deltapass.bench.record import Record

pytest.importorskip("diffusers")


def made(psnr: float = 31, **given: object) -> Record:
    found = {"psnr": values(psnr, 3)}
    return record(
        row("plain", 1.0, {}),
        row("plain-13", 0.65, {"psnr": values(30, 2)}),
        row("delta-dit-1.6x", 0.62, found, equal_time="plain-13"),
        **given,
    )


def kept(folder: Path, name: str, found: Record) -> Path:
    path = folder / name / "record.json"
    path.parent.mkdir(parents=True)
    path.write_bytes(msgspec.json.encode(found))
    return path


def test_committed_pages_are_those_of_the_committed_records() -> None:
    records = newest(RESULTS)
    hint = "run: python benchmarks/results_page.py"
    assert PAGE.read_text() == page(records, results_page.macs_table()), hint
    assert README.read_text() == filled(README.read_text(), records), hint


def test_of_one_suite_and_model_the_newest_record_counts(tmp_path: Path) -> None:
    kept(tmp_path, "old", made(date="2026-01-01T00:00:00+00:00"))
    new = kept(tmp_path, "new", made(date="2026-01-02T00:00:00+00:00"))
    other = kept(tmp_path, "other", made(model="nouns", date="2025-01-02T00:00:00+00:00"))
    figure = kept(tmp_path, "figure", made(suite="fig6"))
    (tmp_path / "environment.json").write_text('{"name": "no record"}')
    assert list(newest(tmp_path)) == [new, other, figure]


def test_without_records_the_page_says_that_nothing_was_measured() -> None:
    text = page({}, ())
    assert "**Not measured** by any record here" in text
    assert "**Agrees:**" not in text


def test_verdicts_follow_the_numbers(tmp_path: Path) -> None:
    won, lost = (page({tmp_path / "r.json": made(psnr)}, ()) for psnr in (31, 29))
    assert "**Agrees:**\n\n- Tables 1, 2, 6, 7" in won
    assert "**Does not agree:**\n\n- Tables 1, 2, 6, 7" in lost
    assert "*We think:*" in lost
    assert "## Title of table1: garments" in won


def test_places_of_other_pages_are_filled_by_suite_and_model(tmp_path: Path) -> None:
    text = "before\n<!-- bench: table1 garments -->\nstale\n<!-- end -->\nafter\n"
    records = {tmp_path / "r.json": made()}
    done = filled(text, records)
    assert "stale" not in done
    assert "| delta-dit-1.6x | 1.61x | plain-13 | better (+" in done
    assert done.startswith("before\n")
    assert done.endswith("<!-- end -->\nafter\n")
    assert filled(done, records) == done
    with pytest.raises(KeyError):
        filled(text, {})


def test_a_place_may_name_its_rows(tmp_path: Path) -> None:
    record = made()
    *_, last = (row.name for row in record.rows if row.equal_time is not None)
    text = f"<!-- bench: table1 garments {last} -->\n<!-- end -->\n"
    done = filled(text, {tmp_path / "r.json": record})
    assert done.count("\n| ") == 3  # titles, a rule, one row
    assert f"| {last} |" in done
    with pytest.raises(KeyError, match="nobody"):
        filled(text.replace(last, "nobody"), {tmp_path / "r.json": record})


def test_check_writes_nothing_and_fails_on_a_difference(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stale = tmp_path / "results.md"
    stale.write_text("stale")
    readme = tmp_path / "README.md"
    readme.write_text("no place to fill")
    monkeypatch.setattr(results_page, "PAGE", stale)
    monkeypatch.setattr(results_page, "README", readme)
    monkeypatch.setattr(results_page, "macs_table", lambda: ())
    for arguments, code, text in ((["--check"], 1, "stale"), ([], 0, None), (["--check"], 0, None)):
        monkeypatch.setattr("sys.argv", ["results_page.py", "--results", str(tmp_path), *arguments])
        with pytest.raises(SystemExit) as ended:
            results_page.main()
        assert ended.value.code == code
        assert (stale.read_text() == "stale") == (text is not None)
