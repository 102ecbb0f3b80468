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

from diffusers import DiTTransformer2DModel, DPMSolverMultistepScheduler
from PIL import Image
from rich.console import Console

from deltapass.demo import compare as demo
from deltapass.demo.compare import DemoResult, DemoSettings, progress_bars, run_demo
from deltapass.demo.embedded import ClassConditionalPipeline
from deltapass.demo.images import grid, mean_psnr
from deltapass.demo.picture import outcome_table, write_json, write_picture

# diffusers' schedulers make arrays of tensors in a way that newer numpy warns of.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")


def small() -> ClassConditionalPipeline:
    """What `load_embedded` gives, but of 8 narrow blocks and with random weights."""
    torch.manual_seed(0)
    model = DiTTransformer2DModel(
        num_attention_heads=2, attention_head_dim=16, in_channels=1, out_channels=1, num_layers=8,
        sample_size=8, patch_size=4, num_embeds_ada_norm=10,
    )  # fmt: skip
    scheduler = DPMSolverMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True)
    return ClassConditionalPipeline(model.eval().requires_grad_(False), scheduler)


def run(**changes: Any) -> DemoResult:
    chosen = {"count": 2, "steps": 6, "rounds": 1, "lowering": "eager", "options": {}, **changes}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(demo, "load_embedded", small)
        with progress_bars(Console(file=io.StringIO())) as progress:
            return run_demo(DemoSettings(**chosen), progress)


@pytest.fixture(scope="module")
def result() -> DemoResult:
    return run(options={"cached_blocks": 6})


def test_four_methods_are_compared_the_last_at_equal_cost(result: DemoResult) -> None:
    names = [row.name for row in result.outcomes]
    assert names == [
        "plain, 6 steps", "deltadit, order 0", "deltadit, order 1", "plain, 4 steps",
    ]  # fmt: skip
    assert result.outcomes[0].speedup == 1.0
    assert all(row.seconds_per_image > 0 for row in result.outcomes)


def test_our_images_are_near_the_plain_ones_and_not_equal(result: DemoResult) -> None:
    for row in result.outcomes[1:3]:
        assert row.psnr is not None
        assert 10 < row.psnr < 100


def test_costs_come_from_the_report(result: DemoResult) -> None:
    plain, ours, _, fewer = result.outcomes
    assert ours.gmacs_full == pytest.approx(plain.gmacs_full / result.report.expected_speedup)
    assert fewer.gmacs_full == pytest.approx(plain.gmacs_full * 4 / 6)


def test_table_picture_and_numbers_are_written(result: DemoResult, tmp_path: Path) -> None:
    console = Console(file=io.StringIO(), width=100)
    console.print(outcome_table(result))
    assert "deltadit, order 1" in console.file.getvalue()  # type: ignore[attr-defined]
    write_picture(result, tmp_path / "demo.png")
    write_json(result, tmp_path / "demo.json")
    assert min(_size(tmp_path / "demo.png")) > 100
    numbers = json.loads((tmp_path / "demo.json").read_text())
    assert len(numbers["methods"]) == 4
    assert {"date", "torch", "hardware", "schedule", "buffer_bytes"} <= set(numbers)
    assert numbers["seeds"] == [0, 1]
    assert all(len(row["round_seconds"]) == 1 for row in numbers["methods"])


def test_nothing_cached_gives_the_plain_images_and_needs_no_rival(tmp_path: Path) -> None:
    result = run(steps=2, options={"schedule": "none"})
    assert [row.psnr for row in result.outcomes] == [None, float("inf"), float("inf")]
    write_json(result, tmp_path / "demo.json")  # and infinity is no JSON
    rows = json.loads((tmp_path / "demo.json").read_text())["methods"]
    assert [(row["psnr"], row["equal"]) for row in rows] == [(None, False), *[(None, True)] * 2]


def test_psnr_of_a_known_error() -> None:
    wanted = torch.zeros(2, 1, 4, 4)
    assert mean_psnr(wanted + 0.1, wanted) == pytest.approx(20.0)
    assert mean_psnr(wanted, wanted) == float("inf")


def test_grid_places_images_row_by_row() -> None:
    images = torch.arange(3.0).view(3, 1, 1, 1).expand(3, 1, 2, 2)
    picture = grid(images, columns=2)
    assert picture.shape == (4, 4)
    assert [picture[0, 0], picture[0, 2], picture[2, 0], picture[2, 2]] == [0, 1, 2, 0]


def _size(path: Path) -> tuple[int, int]:
    with Image.open(path) as picture:
        return picture.size
