"""What cannot be exported is refused with the reason, and nothing is written."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from models import AdaLNDenoiser, make
from torch.export import Dim

import deltapass
from deltapass.errors import (
    DynamicShapeError,
    ExportError,
    NoBlocksError,
    OptionError,
    ScheduleError,
    TooManyCachedBlocksError,
)

for library in ("onnx", "onnxscript", "onnxruntime", "safetensors"):
    pytest.importorskip(library)

from safetensors import SafetensorError  # noqa: E402 - after the check that it is there


@pytest.mark.parametrize(
    ("options", "error", "text"),
    [
        ({"lowering": "eager"}, ExportError, "export takes no option 'lowering'. It takes inter"),
        ({"intervall": 2}, ExportError, "export takes no option 'intervall'"),
        ({"format": "openvino"}, OptionError, "option 'format' is 'openvino'"),
        ({"engine": {"fast": 1}}, OptionError, "option 'fast' is 1"),
        ({"interval": 0}, ScheduleError, "interval is 0"),
        ({"cached_blocks": 9}, TooManyCachedBlocksError, "but the model has 2 blocks"),
        ({"batch": (3, 8)}, DynamicShapeError, "a batch of 2, the bundle is to take"),
        ({"dynamic_shapes": {"x": {0: Dim("n")}}}, DynamicShapeError, "dimensions of x, which"),
    ],
)
def test_what_cannot_be_done_is_refused_and_nothing_written(
    options: dict[str, Any], error: type[Exception], text: str, tmp_path: Path
) -> None:
    model = make("adaln", depth=2)
    args, kwargs = model.inputs(1.0)
    with pytest.raises(error, match=text):
        deltapass.export(model, args, kwargs, tmp_path / "bundle", **options)
    assert not list(tmp_path.iterdir())


def test_an_example_of_one_sample_can_have_no_dynamic_batch(tmp_path: Path) -> None:
    model = make("adaln", depth=2)
    (x, timestep), _ = model.inputs(1.0)
    with pytest.raises(DynamicShapeError, match=r"a batch of 1.*at least 2"):
        deltapass.export(model, (x[:1], timestep[:1]), {}, tmp_path / "bundle", batch=(1, 8))


def test_a_model_without_blocks_is_refused(tmp_path: Path) -> None:
    model = make("no_blocks")
    with pytest.raises(NoBlocksError):
        deltapass.export(model, *model.inputs(1.0), tmp_path / "bundle")
    assert not list(tmp_path.iterdir())


def test_a_model_that_cannot_be_traced_is_refused_with_the_reason(tmp_path: Path) -> None:
    class Branching(AdaLNDenoiser):
        def forward(self, hidden_states: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
            half = hidden_states / 2 if float(timestep.sum()) > 1 else hidden_states
            return super().forward(half, timestep)

    with pytest.raises(ExportError, match=r"torch\.export cannot trace the model") as caught:
        deltapass.export(Branching(2).eval(), *make("adaln").inputs(1.0), tmp_path / "bundle")
    assert caught.value.__cause__ is not None and not list(tmp_path.iterdir())


def test_the_example_must_fit_the_model(tmp_path: Path) -> None:
    model = make("adaln", depth=2)
    args, _ = model.inputs(1.0)
    with pytest.raises(ExportError, match="unexpected arguments: prompt"):
        deltapass.export(model, args, {"prompt": args[0]}, tmp_path / "bundle")


@pytest.mark.parametrize(
    ("place", "options", "text"),
    [
        ("file/bundle", {}, "cannot be written: .*Choose another place"),
        ("file", {}, "exists. Choose another place, or say overwrite"),
        ("file", {"overwrite": True}, "is no plan bundle, or more than one"),
        ("bundle", {"engine": {"opset": 3}}, "option 'opset' is 3. It must be a whole number from"),
        ("bundle", {"format": "aoti", "engine": {"inductor": 1}}, "option 'inductor' is 1"),
        ("bundle", {"format": "tensorrt", "engine": {"effort": 9}}, "option 'effort' is 9"),
    ],
)
def test_where_and_how_to_write_is_checked_before_anything_is_traced(
    place: str, options: dict[str, Any], text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def trace(*args: Any) -> Any:
        raise AssertionError("traced")

    monkeypatch.setattr("deltapass.exporting.write.export_graph", trace)
    (tmp_path / "file").write_text("mine")
    model = make("adaln", depth=2)
    with pytest.raises((ExportError, OptionError), match=text):
        deltapass.export(model, *model.inputs(1.0), tmp_path / place, **options)
    assert (tmp_path / "file").read_text() == "mine" and len(list(tmp_path.iterdir())) == 1


def test_a_failing_export_leaves_the_bundle_that_is_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, path = make("adaln", depth=2), tmp_path / "bundle"
    deltapass.export(model, *model.inputs(1.0), path, verify=False)
    before = {file.name: file.read_bytes() for file in path.iterdir()}
    errors = {
        "full": SafetensorError("I/O error: No space left on device (os error 28)"),
        "not": OSError(28, "No space left on device"),
    }
    for error in errors.values():

        def save(*args: Any, error: Exception = error) -> None:
            raise error

        monkeypatch.setattr("safetensors.torch.save_file", save)
        with pytest.raises(ExportError, match=r"cannot be written: .*No space left"):
            deltapass.export(model, *model.inputs(1.0), path, verify=False, overwrite=True)
    assert {file.name: file.read_bytes() for file in path.iterdir()} == before
    assert len(list(tmp_path.iterdir())) == 1


def test_complex_values_between_segments_are_refused_for_onnx_by_name(tmp_path: Path) -> None:
    class Rotating(AdaLNDenoiser):
        def forward(self, hidden_states: torch.Tensor, timestep: torch.Tensor) -> Any:
            turned = torch.polar(torch.ones_like(timestep), timestep)
            return super().forward(hidden_states, timestep), turned

    model = Rotating(2).eval()
    with pytest.raises(ExportError, match=r"complex64, which ONNX lacks. Make it real.*'aoti'"):
        deltapass.export(model, *make("adaln").inputs(1.0), tmp_path / "bundle", verify=False)
    assert not list(tmp_path.iterdir())
