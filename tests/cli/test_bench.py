"""`deltapass bench`."""

from __future__ import annotations

import csv
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

pytest.importorskip("diffusers")
pytest.importorskip("jinja2")

from commands import call
from tiny_bench import tiny_pipeline

from deltapass.cli.bench_jobs import PROGRAM
from deltapass.explanation import explain

SUITE = """
name = "mine"
title = "Mine"
question = "Does it run?"
steps = 4
images = 2
measures = ["psnr"]
fine_steps = 0
[[method]]
name = "plain"
[[method]]
name = "plain"
steps = 3
[[method]]
name = "delta-dit"
settings = { cached_blocks = 3 }
"""
SMALL = ("--model", "tiny_bench:made", "--lowering", "eager", "--batch", "2", "--timed", "0")
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation")


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A folder to work in, with a suite."""
    monkeypatch.chdir(tmp_path)
    Path("mine.toml").write_text(SUITE)
    return tmp_path


def test_suites_are_listed_with_what_they_answer() -> None:
    code, output = call("bench")
    assert code == 0 and "table5" in output and "What should be used at which speed-up?" in output


def test_a_suite_of_one_s_own_gives_records_and_a_page_and_is_compared(here: Path) -> None:
    code, output = call("bench", "mine.toml", *SMALL, "-o", "out")
    assert code == 0 and "page: out/index.html" in output
    folder = here / "out" / "mine" / "tiny_bench-made"
    assert (folder / "record.json").exists() and (folder / "tables.md").exists()
    assert len([*folder.glob("images/*/*.png")]) == 6
    assert "<html" in (here / "out" / "index.html").read_text()
    code, output = call("bench", "compare", "out", "out")
    assert code == 0 and "inconclusive: 2 images; a verdict takes 30" in output


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("tabel5",), "there is no suite 'tabel5'. Did you mean 'table5'"),
        (("table5", "--model", "nowhere"), "there is no such folder"),
        (("table5", "--prompts", "none.txt"), "prompts none.txt: No such file"),
        (("table5", "--dtype", "float8"), "dtype is 'float8'"),
        (("table11",), "has no model of its own"),
        (("compare", "one"), "compare takes two runs"),
        (("compare", "one", "other"), "holds no records"),
        (("table5", "--only", "page"), "holds no records"),
        (("macs", "table1"), "macs stands alone"),
        (("macs", "--images", "5"), "macs draws nothing"),
        (("macs", "--call", "{}"), "it is for --model"),
        (("macs", "--model", "nowhere"), "there is no such folder"),
    ],
)
def test_what_cannot_be_followed_is_said(here: Path, words: tuple[str, ...], said: str) -> None:
    code, output = call("bench", *words)
    assert code and said in output


def test_a_check_draws_nothing(here: Path) -> None:
    code, output = call("bench", "mine.toml", *SMALL, "-o", "out", "--check")
    assert code == 0 and "3 rows of 2 images" in output and "can be begun" in output
    assert not (here / "out").exists()


# ---- MACs ----------------------------------------------------------------------------------------


def three() -> tuple[Any, tuple[Any, ...], dict[str, Any]]:
    """A factory of a model and one call of it."""
    call = {"timestep": torch.zeros(2), "class_labels": torch.zeros(2, dtype=torch.int64)}
    return tiny_pipeline().transformer, (torch.zeros(2, 1, 8, 8),), call


def test_the_paper_s_macs_are_shown_and_written_beside_ours(here: Path) -> None:
    code, output = call("bench", "macs", "-o", "out")
    assert code == 0 and "Table 12" in output and "48 of 49 figures are met" in output
    page, rows = (here / "out" / "macs.md").read_text(), _numbers(here / "out" / "macs.csv")
    assert "| Table 1 | PixArt-a T=13 | 55.673 | 55.659 | -0.026 |" in page
    assert len(rows) == 49 and float(rows[0]["paper"]) == pytest.approx(85.65, rel=1e-3)


@pytest.mark.parametrize("source", ["tiny_bench:made", "bench_factory:three"])
def test_macs_of_a_model_are_those_of_its_modules(
    here: Path, monkeypatch: pytest.MonkeyPatch, source: str
) -> None:
    monkeypatch.setitem(sys.modules, "bench_factory", ModuleType("bench_factory"))
    monkeypatch.setattr(sys.modules["bench_factory"], "three", three, raising=False)
    code, output = call("bench", "macs", "--model", source, "-o", "out")
    assert code == 0 and "2 in the batch" in output and "transformer_blocks.*.attn1" in output
    (path,) = (here / "out").glob("*.csv")
    rows = _numbers(path)
    model, args, kwargs = three()
    report = explain(model, *args, options={"steps": 1}, **kwargs)
    assert sum(float(row["macs_paper"]) for row in rows) == report.plain_macs.paper
    whole = sum(float(row["macs_full"]) for row in rows)
    assert whole == report.plain_macs.full
    blocks = sum(float(r["macs_full"]) for r in rows if r["module"].startswith("transformer_bl"))
    lines = path.with_suffix(".md").read_text().splitlines()
    (said,) = [line for line in lines if line.startswith("| all blocks")]
    assert said.endswith(f"| {100 * blocks / whole:.2f} |")


def _numbers(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return [*csv.DictReader(file)]


def test_a_process_of_its_own_is_not_misled_by_what_lies_in_the_folder(tmp_path: Path) -> None:
    (tmp_path / "deltapass").mkdir()  # such as a clone of the repository
    asked = [*PROGRAM, "bench"]
    done = subprocess.run(asked, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert "table1" in done.stdout
