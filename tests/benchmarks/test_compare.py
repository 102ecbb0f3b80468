"""What the comparison of two saved runs shows, and when it fails."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import compare
import pytest


def saved(folder: Path, number: str, **medians: tuple[float, dict[str, Any]]) -> Path:
    """A run as pytest-benchmark saves it, as far as it is read."""
    content = {
        "datetime": "2026-11-29T12:00:00",
        "commit_info": {"id": "0123456789", "dirty": True},
        "machine_info": {"node": "here", "cpu": {"brand_raw": "a processor"}},
        "benchmarks": [
            {
                "fullname": f"benchmarks/{name}[eager]",
                "stats": {"median": seconds, "min": 0.9 * seconds},
                "extra_info": extra,
            }
            for name, (seconds, extra) in medians.items()
        ],
    }
    path = folder / f"{number}_run.json"
    path.write_text(json.dumps(content))
    return path


@pytest.fixture
def runs(tmp_path: Path) -> tuple[str, str]:
    one = {"bodies compiled": 8, "graphs": 1}
    other = {"bodies compiled": 6, "graphs": 1}
    a = saved(tmp_path, "0001", step=(0.010, one), gone=(1.0, {}))
    b = saved(tmp_path, "0002", step=(0.012, other), load=(2e-6, {"bytes": 7}))
    return str(a), str(b)


def test_times_and_extra_info_stand_side_by_side(
    runs: tuple[str, str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "160")
    compare.main(runs)
    shown = capsys.readouterr().out
    assert "A: 0123456+, 2026-11-29T12:00, a processor" in shown
    for text in (
        "step[eager]",
        "10 ms",
        "12 ms",
        "+20.0 %",
        "bodies compiled 8 -> 6 (-25.0 %)",
        "2 us",
        "1 s",
    ):
        assert text in shown
    assert "graphs" not in shown, "what is equal is left out"
    compare.main([*runs, "--all"])
    assert "graphs 1" in capsys.readouterr().out


def test_it_fails_only_where_something_got_slower_by_more(runs: tuple[str, str]) -> None:
    compare.main([*runs, "--fail", "25"])
    with pytest.raises(SystemExit, match=r"slower by more than 15 %: benchmarks/step\[eager\]"):
        compare.main([*runs, "--fail", "15"])


def test_a_saved_run_is_found_by_its_number(runs: tuple[str, str], tmp_path: Path) -> None:
    assert compare.read("0002", tmp_path).runs["benchmarks/step[eager]"].seconds == 0.012
    with pytest.raises(SystemExit, match="2 saved runs are named 000"):
        compare.read("000", tmp_path)
