"""The TensorRT format: RTX engines really built for every segment, without a GPU."""

from __future__ import annotations

import json
from copy import deepcopy
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

pytest.importorskip("tensorrt_rtx")
pytest.importorskip("onnxruntime")
pytest.importorskip("diffusers")

from deltapass.backends.tensorrt import format as tensorrt_files
from driving import in_session
from models import make
from models.tiny import make_tiny

import deltapass
from deltapass.demo.compare import DemoSettings, example_call
from deltapass.demo.embedded import load_embedded
from deltapass.errors import DynamicShapeError, MissingDeviceError

TOY = make("adaln")  # made once: what of its weights is not seeded stays
MODELS = ("embedded", "dit", "pixart", "sd3", "flux", "wan")


def export(folder: Path, model: Any, call: Any, **options: Any) -> deltapass.BundlePlan:
    args, kwargs = call
    return deltapass.export(model, args, kwargs, folder, format="tensorrt", **options)


def source(name: str) -> tuple[Any, Any]:
    """A model and a call of it."""
    if name != "embedded":
        tiny = make_tiny(name)
        return tiny.model, tiny.call(1.0)
    pipeline = load_embedded()
    return pipeline.transformer, example_call(pipeline, DemoSettings(count=1, options={}))


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, deltapass.BundlePlan]:
    folder = tmp_path_factory.mktemp("toy")
    model = TOY
    plan = export(
        folder / "bundle",
        model,
        model.inputs(999.0, 0),
        batch=(1, 4),
        engine={"cache_dir": str(folder / "cache")},
    )
    return folder / "bundle", plan


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_every_segment_of_a_model_becomes_an_engine(name: str, tmp_path: Path) -> None:
    plan = export(tmp_path / "b", *source(name))
    built = plan.build["segments"]
    assert set(built) == {segment.name for segment in plan.segments}
    assert all(note["layers"] and note["bytes"] for note in built.values())
    assert plan.verified is not None
    assert "ONNX" in plan.verified["by"]


def test_bundle_holds_engines_and_nothing_of_the_making(
    toy: tuple[Path, deltapass.BundlePlan],
) -> None:
    folder, plan = toy
    names = {path.name for path in folder.iterdir()}
    assert names == {"plan.json", *(f"{segment.name}.engine" for segment in plan.segments)}
    assert set(plan.files) == names - {"plan.json"}
    content = json.loads((folder / "plan.json").read_text())
    assert content["build"]["flavour"] == "tensorrt-rtx"
    assert content["producer"]["tensorrt-rtx"]


def test_the_vendors_command_names_ranges(toy: tuple[Path, deltapass.BundlePlan]) -> None:
    commands = [note["command"] for note in toy[1].build["segments"].values()]
    assert all("--onnx=onnx/" in command for command in commands)
    assert all("--minShapes=" in command and "--maxShapes=" in command for command in commands)


def test_engines_are_found_again(toy: tuple[Path, deltapass.BundlePlan], tmp_path: Path) -> None:
    model = deepcopy(TOY)
    cache = {"cache_dir": str(toy[0].parent / "cache"), "keep_onnx": True}
    again = export(
        tmp_path / "b", model, model.inputs(999.0, 0), batch=(1, 4), engine=cache, verify=False
    )
    found = {name: note["from_cache"] for name, note in again.build["segments"].items()}
    assert all(found.values()), found
    assert (tmp_path / "b" / "onnx" / "weights.safetensors").is_file()
    other = make("adaln", seed=1)
    plan = export(
        tmp_path / "c", other, other.inputs(999.0, 0), batch=(1, 4), engine=cache, verify=False
    )
    built = {name: note["from_cache"] for name, note in plan.build["segments"].items()}
    assert built["delta"]  # glue holds no weights
    assert not any(found for name, found in built.items() if "blocks" in name)


def test_a_dimension_without_an_end_is_refused(tmp_path: Path) -> None:
    model = make("adaln")
    shapes = {"hidden_states": {1: torch.export.Dim("tokens", min=2)}}
    with pytest.raises(DynamicShapeError, match="no greatest size"):
        export(tmp_path / "b", model, model.inputs(999.0, 0), dynamic_shapes=shapes)
    assert not (tmp_path / "b").exists()


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_loading_without_a_gpu_says_what_is_missing(
    toy: tuple[Path, deltapass.BundlePlan],
) -> None:
    with pytest.raises(MissingDeviceError, match="tensorrt-rtx run on a CUDA device"):
        deltapass.load(toy[0])


# ---- running, over a stand-in for engines -----------------------------------------------------


def test_sessions_and_deltas_over_stand_in_engines(
    toy: tuple[Path, deltapass.BundlePlan], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Selector, order of outputs and delta buffers, with ONNX Runtime in the engines' place."""
    model = make("adaln")
    kept = tmp_path / "b"
    plan = export(
        kept, model, model.inputs(999.0, 0), batch=(1, 4), verify=False, engine={"keep_onnx": True}
    )
    files = {s.name: f"{s.name}.onnx" for s in plan.segments}
    sessions = tensorrt_files.open_segments(
        kept / "onnx", plan, files, dict(tensorrt_files.ONNX_OPTIONS)
    )
    loaded: list[str] = []

    def load_segment(engine: bytes, *_: Any, inputs: Any, **__: Any) -> Any:
        name = next(s.name for s in plan.segments if (kept / s.file).read_bytes() == engine)
        spec = plan.segment(name)
        loaded.append(name)
        backwards = tuple(SimpleNamespace(name=output) for output in reversed(spec.outputs))

        class Engine:
            outputs = backwards

            def __call__(self, *given: torch.Tensor) -> tuple[torch.Tensor, ...]:
                return tuple(reversed(sessions[name](*given)))

        return Engine()

    place = SimpleNamespace(place=torch.device("cpu"))
    monkeypatch.setattr(tensorrt_files, "load_segment", load_segment)
    monkeypatch.setattr(tensorrt_files, "cuda_device", lambda *_: place)
    monkeypatch.setattr(tensorrt_files.TensorRTFormat, "device", lambda *_: torch.device("cpu"))
    runs = deltapass.load(kept)
    assert sorted(loaded) == sorted(s.name for s in plan.segments)
    compiled = torch.compile(model, backend="deltadit", options={"lowering": "eager"})
    calls = [model.inputs(999.0 - 90 * step, 0) for step in range(10)]
    ours, report = in_session(runs, calls)
    theirs, _ = in_session(compiled, calls)
    assert report.as_planned
    for one, two in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, two, rtol=1e-4, atol=1e-4)
