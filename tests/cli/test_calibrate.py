"""`deltapass calibrate`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pytest

pytest.importorskip("diffusers")

from commands import call
from models.zoo import NUMPY_WARNINGS

import deltapass
from deltapass.cli.loops import trajectories
from deltapass.schedule.explicit import ExplicitSchedule
from deltapass.schedule.rules import Span


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A folder to work in, with a schedule."""
    monkeypatch.chdir(tmp_path)
    rows = (None, None, Span(2, 6), None, Span(2, 6))
    deltapass.save_schedule(ExplicitSchedule(rows), "plan.json")
    return tmp_path


FACTORY = "own_loop:toy_loop"
SMALL = ("--schedule", "plan.json", "--steps", "5", "--samples", "4", "--batch", "2")


def test_a_loop_is_calibrated_and_the_schedule_written(here: Path) -> None:
    code, output = call("calibrate", FACTORY, "-o", "out.json", *SMALL)
    assert code == 0 and "schedule: out.json" in output
    assert "2 rows fitted to 4 samples" in output
    made = deltapass.load_schedule("out.json")
    assert isinstance(made, ExplicitSchedule) and made.made_for is not None
    assert made.made_for.blocks == 6 and made.made_for.steps == 5
    assert json.loads(Path("out.json").read_text())["made_for"]["steps"] == 5


def test_nothing_is_begun_where_the_file_exists(here: Path) -> None:
    Path("out.json").write_text("mine")
    code, output = call("calibrate", FACTORY, "-o", "out.json", *SMALL)
    assert code == 2 and "out.json exists" in output
    assert Path("out.json").read_text() == "mine"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("nothing-here",), "there is no model in 'nothing-here'"),
        ((FACTORY, "--call", '{"prompt": "a"}'), "is no pipeline's folder"),
        ((FACTORY, "--guidance", "3"), "it is for embedded models; the factory says it"),
        (("-o", "out.txt"), "ends in none of .json"),
        (("--weights", "5"), "Invalid value for '--weights'"),
    ],
)
def test_what_cannot_be_followed_is_said_before_any_work(
    here: Path, words: Sequence[str], said: str
) -> None:
    code, output = call("calibrate", *words)
    assert code == 2 and said in output


@pytest.mark.filterwarnings(NUMPY_WARNINGS, "ignore:the fit explains little")
def test_a_factory_may_give_a_pipeline_with_its_call(
    here: Path,
) -> None:
    rows = (None, None, Span(1, 2), None, Span(1, 2))
    deltapass.save_schedule(ExplicitSchedule(rows), "plan.json")
    code, output = call("calibrate", "own_loop:pipeline_with_call", "-o", "out.json", *SMALL)
    assert code == 0 and "2 rows fitted to 4 samples" in output
    made = deltapass.load_schedule("out.json")
    assert made.made_for is not None and made.made_for.sampler.scheduler is not None


def test_embedded_models_go_by_their_names() -> None:
    garments, classes = trajectories("garments", {}, 3.0)
    assert classes == {"class_labels": list(range(10)), "guidance_scale": 3.0}
    nouns, prompts = trajectories("nouns", {})
    assert prompts is not None and prompts["guidance_scale"] == 2.0
    assert len(set(prompts["prompt"])) > 200
    assert type(garments) is not type(nouns)
