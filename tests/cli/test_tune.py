"""`deltapass tune`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

pytest.importorskip("diffusers")
pytest.importorskip("optuna")

from commands import call

import deltapass
from deltapass.schedule.explicit import ExplicitSchedule

FACTORY = "own_loop:toy_loop"
SMALL = ("--steps", "5", "--samples", "2", "--batch", "2", "--held-out", "2", "--trials", "4")


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A folder to work in."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_schedule_a_picture_and_the_numbers_are_written(here: Path) -> None:
    code, output = call("tune", FACTORY, "-o", "out.json", "--budget", "0.6", *SMALL)
    assert code == 0 and "schedule: out.json" in output and "picture: out.png" in output
    assert "4 trials" in output and "found: 0.6 of the MACs" in output
    made = deltapass.load_schedule("out.json")
    assert isinstance(made, ExplicitSchedule) and made.made_for is not None
    assert len(made.rows) == 5
    assert Path("out.png").read_bytes().startswith(b"\x89PNG")
    numbers = json.loads(Path("out.table.json").read_text())
    assert numbers["found"][0]["cost"] <= 0.6 and len(numbers["measured"][0]["values"]) == 2


def test_the_same_command_goes_on(here: Path) -> None:
    def run(*more: str) -> tuple[int, str]:
        torch.manual_seed(
            0
        )  # the factory's toy is another one each time, and that would be noticed
        return call(*words, *more)

    words = ("tune", FACTORY, "-o", "out.json", "--budget", "0.6", *SMALL)
    assert run()[0] == 0
    code, output = run("--trials", "6", "--overwrite")
    assert code == 0 and "6 trials" in output
    code, output = run("--metric", "mse", "--overwrite")
    assert code == 1 and "are of another search: metric was 'PSNR' and is 'MSE'" in output


def test_a_target_is_named_in_words(here: Path) -> None:
    code, output = call("tune", FACTORY, "-o", "out.json", "--target", "2 steps", *SMALL)
    assert code == 0 and "as near as 2 plain steps" in output


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ((FACTORY,), "option 'budget' is None"),
        ((FACTORY, "--budget", "2"), "option 'budget' is 2.0"),
        ((FACTORY, "--budget", "0.5", "--target", "38"), "target"),
        ((FACTORY, "--target", "good"), "'good' is neither a number nor '16 steps'"),
        (("nothing-here", "--budget", "0.5"), "there is no model in 'nothing-here'"),
        ((FACTORY, "--budget", "0.5", "-o", "out.txt"), "ends in none of .json"),
    ],
)
def test_what_cannot_be_followed_is_said(here: Path, words: Sequence[str], said: str) -> None:
    code, output = call("tune", *words)
    assert code == 2 and said in output


@pytest.mark.parametrize("name", ["out.json", "out.png", "out.table.json"])
def test_nothing_is_begun_where_a_file_exists(here: Path, name: str) -> None:
    Path(name).write_text("mine")
    code, output = call("tune", FACTORY, "-o", "out.json", "--budget", "0.6")
    assert code == 2 and f"{name} exists" in output
    assert Path(name).read_text() == "mine"
