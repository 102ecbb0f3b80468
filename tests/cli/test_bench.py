"""`deltapass bench`."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("diffusers")
pytest.importorskip("jinja2")

from commands import call

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
    ],
)
def test_what_cannot_be_followed_is_said(here: Path, words: tuple[str, ...], said: str) -> None:
    code, output = call("bench", *words)
    assert code and said in output


def test_a_check_draws_nothing(here: Path) -> None:
    code, output = call("bench", "mine.toml", *SMALL, "-o", "out", "--check")
    assert code == 0 and "3 rows of 2 images" in output and "can be begun" in output
    assert not (here / "out").exists()
