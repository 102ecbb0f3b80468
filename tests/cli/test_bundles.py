"""`deltapass export`, `run` and `trajectory`, and where the models they take come from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("diffusers")
pytest.importorskip("onnxruntime")

import diffusers
import numpy as np
import typer
from models import make
from models.zoo import NUMPY_WARNINGS
from PIL import Image
from typer.testing import CliRunner

import deltapass
from deltapass.cli.app import app
from deltapass.cli.bundles import parse_call, parse_dimensions, parse_range
from deltapass.cli.sources import load_source
from deltapass.demo.embedded import load_embedded
from deltapass.errors import OptionError

COUNT, STEPS = 4, 20


def call(*words: str) -> tuple[int, str]:
    result = CliRunner().invoke(app, list(words), env={"COLUMNS": "120"})
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, " ".join(result.output.split())


def toy() -> tuple[object, tuple[object, ...], dict[str, object]]:
    """A factory for `deltapass export test_bundles:toy`."""
    model = make("adaln")
    return (model, *model.inputs(999.0, 0))


def test_export_of_a_factory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    words = ["export", "test_bundles:toy", "-o", str(tmp_path / "b"), "--batch", "1:4"]
    code, text = call(*words, "--option", "cached_blocks=4", "--option", "order=1")
    assert code == 0, text
    assert "verified with ONNX Runtime, CPU" in text
    assert "predict_1" in text
    plan = deltapass.load(tmp_path / "b").plan
    assert (plan.order, plan.dimensions) == (1, {"batch": (1, 4)})
    code, text = call(*words)
    assert (code, "exists. Choose another place" in text) == (1, True)


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["export", "nothing"], 1, "the folder of a diffusers pipeline"),
        (["export", "--format", "onyx"], 1, "one of onnx, aoti, tensorrt"),
        (["export", "--batch", "8:1"], 2, "not least:greatest"),
        (["export", "--dim", "x=1:2"], 2, "input.dimension=least:greatest"),
        (["export", "--call", "{"], 2, "is not JSON"),
        (["export", "--call", "[1]"], 2, "no JSON object"),
        (["export", "--option", "fuse=whole"], 1, "export takes no option 'fuse'"),
        (["export", "--engine", "opsett=3"], 1, "options of this format: opset"),
        (["run", "nowhere"], 1, "does not exist. Give the folder that export wrote"),
    ],
)
def test_bad_input_is_one_message(
    words: list[str], code: int, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    found, text = call(*words)
    assert (found, message in text) == (code, True), text
    assert not list(tmp_path.iterdir())


def test_parsers() -> None:
    assert parse_range("1:8") == (1, 8)
    assert parse_call('{"prompt": "a"}') == {"prompt": "a"}
    assert parse_dimensions([]) is None
    found = parse_dimensions(["x.2=16:64", "x.3=4:8"]) or {}
    assert list(found["x"]) == [2, 3]
    assert (found["x"][2].min, found["x"][2].max) == (16, 64)
    with pytest.raises(typer.BadParameter):
        parse_range("0:8")


# ---- a pipeline's folder ------------------------------------------------------------------------


@pytest.mark.filterwarnings(NUMPY_WARNINGS)
def test_first_call_of_a_pipeline_on_disk(tmp_path: Path) -> None:
    transformer = diffusers.DiTTransformer2DModel(
        num_attention_heads=2, attention_head_dim=16, in_channels=4, out_channels=4, num_layers=2,
        sample_size=4, patch_size=2, num_embeds_ada_norm=1000,
    )  # fmt: skip
    vae = diffusers.AutoencoderKL(block_out_channels=(32,), norm_num_groups=8)
    scheduler = diffusers.DPMSolverMultistepScheduler()
    diffusers.DiTPipeline(transformer, vae, scheduler).save_pretrained(tmp_path / "pipe")
    given: dict[str, Any] = {"class_labels": [1], "num_inference_steps": 2}
    model, args, kwargs = load_source(str(tmp_path / "pipe"), given)
    assert not model.training
    assert args[0].shape[0] == 2  # both halves of guidance
    with torch.no_grad():
        model(*args, **kwargs)
    assert not model._forward_pre_hooks
    with pytest.raises(OptionError, match="takes; it says"):
        load_source(str(tmp_path / "pipe"), {"prompt": "a cat"})


# ---- the newcomer's path ------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.filterwarnings(NUMPY_WARNINGS)
def test_the_embedded_model_gives_the_same_pictures(tmp_path: Path) -> None:
    bundle, picture = str(tmp_path / "bundle"), str(tmp_path / "grid.png")
    assert call("export", "-o", bundle, "--count", str(COUNT))[0] == 0
    code, text = call("run", bundle, "-o", picture, "--count", str(COUNT), "--compare")
    assert code == 0, text
    assert "10 refreshes (0 forced, 0 refused), 10 cached" in text
    pipeline = load_embedded()
    pipeline.set_progress_bar_config(disable=True)
    options = {"lowering": "eager", "steps": STEPS}
    pipeline.transformer = torch.compile(pipeline.transformer, backend="deltadit", options=options)
    deltapass.attach(pipeline)
    generators = [torch.Generator().manual_seed(number) for number in range(COUNT)]
    images = pipeline(list(range(COUNT)), generator=generators, output_type="np").images
    with Image.open(picture) as opened:
        shown = torch.from_numpy(np.array(opened))
    for number in range(COUNT):
        wanted = torch.from_numpy(images[number, :, :, 0]) * 255
        ours = shown[:, 28 * number : 28 * (number + 1)]
        assert (ours - wanted).abs().max() <= 0.51  # rounded to 8 bits
