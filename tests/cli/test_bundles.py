"""`deltapass export`, `run` and `trajectory`, and where the models they take come from."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

pytest.importorskip("diffusers")
pytest.importorskip("onnxruntime")

import diffusers
import numpy as np
import typer
from commands import call
from models import make
from models.zoo import NUMPY_WARNINGS
from PIL import Image

import deltapass
from deltapass.cli.bundles import parse_dimensions, parse_range
from deltapass.cli.command_line import parse_call
from deltapass.cli.sampling import check_model_of, image_count, sample
from deltapass.cli.sources import dimensions, load_source
from deltapass.demo.embedded import load_embedded
from deltapass.errors import BundleError, OptionError, PipelineCallError

COUNT, STEPS = 4, 20


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
    assert "predict_2" in text
    plan = deltapass.load(tmp_path / "b").plan
    assert (plan.predictor, plan.dimensions) == ("linear", {"batch": (1, 4)})
    code, text = call(*words)
    assert (code, "exists. Choose another place" in text) == (2, True)
    code, text = call("run", str(tmp_path / "b"), "-o", str(tmp_path / "grid.png"))
    assert code == 1
    assert "the bundle does not fit the embedded pipeline: it is of AdaLN" in text
    assert "in Python, with deltapass.load" in text


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["export", "nothing"], 2, "the folder of a diffusers pipeline"),
        (["export", "--format", "onyx"], 2, "one of onnx, aoti, tensorrt"),
        (["export", "--batch", "8:1"], 2, "not least:greatest"),
        (["export", "--dim", "x=1:2"], 2, "input.dimension=least:greatest"),
        (["export", "--call", "{"], 2, "is not JSON"),
        (["export", "--call", "[1]"], 2, "no JSON object"),
        (["export", "--option", "fuse=whole"], 2, "export takes no option 'fuse'"),
        (["export", "--engine", "opsett=3"], 2, "options of this format: opset"),
        (["run", "nowhere"], 2, "does not exist. Give the folder that export wrote"),
        (["run", "."], 1, "holds no plan.json"),
    ],
)
def test_bad_input_is_one_message(
    words: list[str], code: int, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    found, text = call(*words)
    assert (found, message in text) == (code, True), text
    assert not list(tmp_path.iterdir())


def test_options_of_the_format_and_the_place_are_judged_before_a_model_is_loaded(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def loaded(*_: object) -> None:
        raise AssertionError("a model was loaded")

    monkeypatch.setattr("deltapass.cli.sources.load_source", loaded)
    code, text = call("export", "-o", str(tmp_path / "b"), "--engine", "opset=3")
    assert (code, "option 'opset' is 3" in text) == (2, True), text
    (tmp_path / "mine.txt").touch()
    code, text = call("export", "-o", str(tmp_path), "--overwrite")
    assert (code, "it holds mine.txt" in text) == (1, True), text


def test_parsers() -> None:
    assert parse_range("1:8", "--batch") == (1, 8)
    assert parse_call(None) == {}
    assert parse_call('{"prompt": "a"}') == {"prompt": "a"}
    assert dimensions(parse_dimensions([])) is None
    found = dimensions(parse_dimensions(["x.2=16:64", "x.3=4:8"])) or {}
    assert list(found["x"]) == [2, 3]
    assert (found["x"][2].min, found["x"][2].max) == (16, 64)
    with pytest.raises(typer.BadParameter):
        parse_range("0:8", "--batch")


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
    with pytest.raises(
        PipelineCallError, match=r"called with prompt: it says TypeError: .*'prompt'"
    ):
        load_source(str(tmp_path / "pipe"), {"prompt": "a cat"})
    assert not model._forward_pre_hooks
    code, text = call("explain", str(tmp_path / "pipe"))
    assert code == 1
    assert "DiTPipeline cannot be called without arguments: it says TypeError: " in text
    assert "Say how with --call" in text
    (tmp_path / "pipe" / "model_index.json").write_text("{ garbage")
    code, text = call("explain", str(tmp_path / "pipe"), "--call", '{"class_labels": [1]}')
    assert (code, "diffusers says" in text) == (1, True), text


# ---- what a bundle fits -------------------------------------------------------------------------


def plan_of(batch: int | str, dimensions: dict[str, Any] | None = None, **config: Any) -> Any:
    """As much of a bundle's plan as is looked at before it is run."""
    sample_input = SimpleNamespace(role="sample", shape=(batch, 1, 28, 28))
    return SimpleNamespace(
        inputs=(SimpleNamespace(role="timestep", shape=(7,)), sample_input),
        dimensions=dimensions or {},
        attributes={"class": "Model", "config": config},
    )


def test_as_many_images_as_the_bundle_takes() -> None:
    assert image_count(plan_of(8), None, 2) == image_count(plan_of(8), 4, 2) == 4
    assert image_count(plan_of(8), None, 1) == 8
    varied = plan_of("batch", {"batch": (2, 80)})
    assert image_count(varied, None, 2) == 20
    assert image_count(varied, 40, 2) == 40
    assert image_count(plan_of("batch", {"batch": (2, 8)}), None, 2) == 4
    assert image_count(plan_of("batch", {"batch": (60, None)}), None, 2) == 30
    with pytest.raises(OptionError, match=r"count.*It must be 4: .* for a batch of 8, with guid"):
        image_count(plan_of(8), 2, 2)
    with pytest.raises(OptionError, match=r"It must be 1 to 40: .* batch of 2 to 80"):
        image_count(varied, 41, 2)


class Model:
    def __init__(self, **config: Any) -> None:
        self.config = config


def test_a_bundle_of_another_model_is_told_from_the_pipelines_own() -> None:
    plan = plan_of(8, depth=4, sizes=[1, 2], _name_or_path="here", kept_by_export=1)
    check_model_of(plan, Model(depth=4, sizes=(1, 2), _name_or_path="there"), "embedded")
    with pytest.raises(BundleError, match=r"its depth is 4, the denoiser's 5.*--pipeline; call"):
        check_model_of(plan, Model(depth=5), "embedded")
    with pytest.raises(BundleError, match=r"of Model, the pipeline's denoiser is int.*pipeline.$"):
        check_model_of(plan, 3, "folder")


class Video:
    """A pipeline that gives frames, or nothing."""

    def __init__(self, **result: Any) -> None:
        self.result = SimpleNamespace(**result)

    def __call__(self, generator: object, output_type: str, steps: int = 2) -> Any:
        if steps == 1:
            raise IndexError("list index out of range")
        return self.result


def test_frames_count_as_images_and_an_index_error_is_named_as_one() -> None:
    frames = np.zeros((1, 3, 8, 8, 3))
    assert sample(Video(frames=frames), {}, 0).images.shape == (3, 8, 8, 3)
    with pytest.raises(PipelineCallError, match="gives SimpleNamespace without images"):
        sample(Video(audio=frames), {}, 0)
    with pytest.raises(PipelineCallError, match="with steps: it says IndexError: list index out"):
        sample(Video(), {"steps": 1}, 0)


# ---- the newcomer's path ------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.filterwarnings(NUMPY_WARNINGS)
def test_the_embedded_model_gives_the_same_pictures(tmp_path: Path) -> None:
    bundle, picture = str(tmp_path / "bundle"), str(tmp_path / "grid.png")
    assert call("export", "-o", bundle, "--count", str(COUNT))[0] == 0
    code, text = call("run", bundle, "-o", picture, "--compare")  # as many images as it takes
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
