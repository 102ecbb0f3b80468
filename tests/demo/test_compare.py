"""The demo on a small denoiser and the eager lowering; `make demo` runs it on the real one."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("diffusers")
pytest.importorskip("matplotlib")

from diffusers import (
    DiTTransformer2DModel,
    DPMSolverMultistepScheduler,
    PixArtTransformer2DModel,
)
from PIL import Image
from rich.console import Console

from deltapass.demo import compare as demo
from deltapass.demo.compare import DemoResult, DemoSettings, progress_bars, run_demo, seeds
from deltapass.demo.embedded import AttributeConditionalPipeline, ClassConditionalPipeline
from deltapass.demo.methods import ASKED, SHOWN
from deltapass.demo.numbers import outcome_table, write_json
from deltapass.demo.picture import write_picture
from deltapass.demo.pixels import PixelPipeline
from deltapass.demo.sampling import Turns
from deltapass.errors import RefusalWarning

# diffusers' schedulers make arrays of tensors in a way that newer numpy warns of.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")


def small(name: str) -> PixelPipeline:
    """What `load_embedded` gives, but of 8 narrow blocks and with random weights."""
    torch.manual_seed(0)
    scheduler = DPMSolverMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True)
    return {"garments": small_garments, "nouns": small_nouns}[name](scheduler)


def small_garments(scheduler: Any) -> PixelPipeline:
    """Grey, of ten classes."""
    model = DiTTransformer2DModel(
        num_attention_heads=2, attention_head_dim=16, in_channels=1, out_channels=1, num_layers=8,
        sample_size=8, patch_size=4, num_embeds_ada_norm=10,
    )  # fmt: skip
    return ClassConditionalPipeline(model.eval().requires_grad_(False), scheduler)


def small_nouns(scheduler: Any) -> PixelPipeline:
    """In colour, of two attributes."""
    parts = {"head": ("owl", "frog"), "body": ("green", "cold", "yellow")}
    model = PixArtTransformer2DModel(
        num_attention_heads=2, attention_head_dim=16, in_channels=3, out_channels=3, num_layers=8,
        cross_attention_dim=32, caption_channels=7, sample_size=8, patch_size=4,
        use_additional_conditions=False,
    )  # fmt: skip
    return AttributeConditionalPipeline(model.eval().requires_grad_(False), scheduler, parts)


def run(**changes: Any) -> DemoResult:
    chosen = {"count": 2, "steps": 6, "rounds": 1, "lowering": "eager", "options": {}, **changes}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(demo, "load_embedded", small)
        with progress_bars(Console(file=io.StringIO())) as progress:
            return run_demo(DemoSettings(**chosen), progress)


@pytest.fixture(scope="module")
def result() -> DemoResult:
    return run(options={"cached_blocks": 6})


def test_plain_comes_first_what_was_asked_for_is_the_last_of_ours(result: DemoResult) -> None:
    names = [row.name for row in result.outcomes]
    assert names[: len(SHOWN) + 2] == ["plain, 6 steps", *SHOWN, ASKED]
    assert result.outcomes[0].speedup == 1.0
    assert all(row.seconds_per_image > 0 for row in result.outcomes)


def test_fewer_plain_steps_take_as_long_as_the_last_of_ours(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(Turns, "share", lambda *_: 0.6)
    rival = run().outcomes[-1]
    assert (rival.name, rival.steps) == ("plain, 4 steps", 4)
    assert rival.remark == f"as long as: {[*SHOWN][-1]}"
    assert rival.expected_speedup == pytest.approx(6 / 4)
    monkeypatch.setattr(Turns, "share", lambda *_: 1.0)
    assert run().outcomes[-1].name == [*SHOWN][-1]  # the rival would be the plain run again


def test_our_images_are_near_the_plain_ones_and_not_equal(result: DemoResult) -> None:
    for row in result.outcomes[1 : len(SHOWN) + 2]:
        assert row.psnr is not None
        assert 10 < row.psnr < 100


def test_the_model_in_colour_goes_the_same_way(tmp_path: Path) -> None:
    result = run(model="nouns")
    assert all(row.images.shape == (2, 3, 8, 8) for row in result.outcomes)
    assert result.outcomes[1].table != result.outcomes[0].table
    write_json(result, tmp_path / "demo.json")
    assert json.loads((tmp_path / "demo.json").read_text())["model"] == "nouns"


@pytest.mark.parametrize("name", ["garments", "nouns"])
def test_what_is_asked_of_an_image_and_its_noise_follow_its_seed_alone(name: str) -> None:
    pipeline = small(name)
    many = DemoSettings(count=8, seed=3, options={})
    assert pipeline.examples(seeds(many))[4:6] == pipeline.examples(range(7, 9))
    assert len(set(pipeline.examples(range(8)))) > 4


def test_costs_and_tables_come_from_the_report(result: DemoResult) -> None:
    plain, asked = result.outcomes[0], result.outcomes[len(SHOWN) + 1]
    assert asked.gmacs_full == pytest.approx(plain.gmacs_full / result.report.expected_speedup)
    assert asked.table == result.report.schedule_table
    assert plain.table == (None,) * 6
    assert result.blocks == 8


def test_table_picture_and_numbers_are_written(result: DemoResult, tmp_path: Path) -> None:
    console = Console(file=io.StringIO(), width=100)
    console.print(outcome_table(result))
    assert ASKED in console.file.getvalue()  # type: ignore[attr-defined]
    write_picture(result, tmp_path / "demo.png")
    write_json(result, tmp_path / "demo.json")
    assert min(_size(tmp_path / "demo.png")) > 100
    numbers = json.loads((tmp_path / "demo.json").read_text())
    assert len(numbers["methods"]) == len(result.outcomes)
    assert {"date", "torch", "hardware", "buffer_bytes"} <= set(numbers)
    assert {"error", "schedule", "psnr", "remark"} <= set(numbers["methods"][1])
    assert numbers["seeds"] == [0, 1]
    assert all(len(row["round_seconds"]) == 1 for row in numbers["methods"])


def test_nothing_cached_gives_the_plain_images(tmp_path: Path) -> None:
    with pytest.warns(RefusalWarning, match="caches none of 2 steps"):  # of the presets shown
        result = run(steps=2, options={"schedule": "none"})
    asked = next(row for row in result.outcomes if row.name == ASKED)
    assert asked.psnr == float("inf")
    assert asked.table == (None, None)
    write_json(result, tmp_path / "demo.json")  # and infinity is no JSON
    rows = json.loads((tmp_path / "demo.json").read_text())["methods"]
    row = next(row for row in rows if row["name"] == ASKED)
    assert (row["psnr"], row["equal"]) == (None, True)
    assert (rows[0]["psnr"], rows[0]["equal"]) == (None, False)


def _size(path: Path) -> tuple[int, int]:
    with Image.open(path) as picture:
        return picture.size
