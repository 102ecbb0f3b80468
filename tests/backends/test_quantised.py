"""Quantised models in bundles: 8-bit weights, operators TensorRT takes, the model's own values.

All but the casts takes a minute: `pytest tests/backends/test_quantised.py -m slow`.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("onnx")
pytest.importorskip("onnxscript")
pytest.importorskip("onnxruntime")

import onnx
import onnxruntime
from deltapass.backends.onnx_float8 import quantise_casts
from models import make
from quantised import FLOAT8, Float8Linear, Int8Linear, quantise
from torch import Tensor, nn

import deltapass
from deltapass.errors import DeltapassError

LINEARS, INPUTS = 6, 5  # of a block: query, key and value share theirs
INT8, FP8 = onnx.TensorProto.INT8, onnx.TensorProto.FLOAT8E4M3FN


def export(kind: Any, folder: Path, **options: Any) -> deltapass.BundlePlan:
    model = make("adaln")
    args, kwargs = model.inputs(999.0, 0)
    return deltapass.export(quantise(model, kind), args, kwargs, folder, batch=(1, 4), **options)


def graph(path: Path) -> Any:
    return onnx.load(path, load_external_data=False).graph


def operators(path: Path) -> Counter[str]:
    return Counter(node.op_type for node in graph(path).node)


def matrices(path: Path, kind: int) -> int:
    return sum(i.data_type == kind and len(i.dims) == 2 for i in graph(path).initializer)


@pytest.mark.slow
@pytest.mark.parametrize("kind", [Int8Linear, Float8Linear])
def test_a_bundle_gives_what_the_quantised_model_gives(kind: Any, tmp_path: Path) -> None:
    plan = export(kind, tmp_path / "b")  # verified against the model, or it raises
    assert plan.verified is not None
    assert any(name.startswith("cached") for name in plan.verified["variants"])
    if kind is Int8Linear:  # torch.onnx folds casts of weights as small as these
        check_block(tmp_path / "b" / "blocks_0_1.onnx", INT8)


def check_block(file: Path, held: int) -> None:
    """A quantise for every input of linear layers, a dequantise for these and every weight."""
    assert matrices(file, held) == LINEARS
    assert operators(file)["QuantizeLinear"] == INPUTS
    assert operators(file)["DequantizeLinear"] == LINEARS + INPUTS
    assert "Cast" not in operators(file)


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "held"), [(Int8Linear, INT8), (Float8Linear, FP8)])
def test_engines_are_built_from_8_bit_weights(kind: Any, held: int, tmp_path: Path) -> None:
    pytest.importorskip("tensorrt_rtx")
    plan = export(kind, tmp_path / "b", format="tensorrt", engine={"keep_onnx": True})
    assert all(note["bytes"] for note in plan.build["segments"].values())
    check_block(tmp_path / "b" / "onnx" / "blocks_0_1.onnx", held)


@pytest.mark.slow
def test_float8_operators_that_onnx_defines_otherwise_are_refused(tmp_path: Path) -> None:
    class Whole(Int8Linear):
        @staticmethod
        def bounds(step: float) -> Any:
            return step, 0, -448, 448, FLOAT8

    with pytest.raises(DeltapassError):
        export(Whole, tmp_path / "b")
    assert not (tmp_path / "b").exists()


# ---- the replaced casts -------------------------------------------------------------------------


class Casts(nn.Module):
    """What may stand behind a cast back, a factor first."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("wide", torch.full((1, 1, 1), 0.5))

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        back = [(x + i).clamp(-448, 448).to(FLOAT8).to(x.dtype) for i in range(6)]
        twice = back[3] * 2.0, back[3] * x
        return back[0] * 0.25, back[1] + x, back[2], *twice, back[4] * -0.5, back[5] * self.wide


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_replaced_casts_give_the_same_bits(dtype: torch.dtype) -> None:
    x = torch.randn(64, generator=torch.Generator().manual_seed(0)).to(dtype) * 200
    model = Casts().to(dtype).eval()
    made = torch.onnx.export(model, (x,), dynamo=True, verbose=False, optimize=False)
    assert quantise_casts(made.model)
    made.optimize()
    names = Counter(node.op_type for node in made.model.graph)
    assert (names["QuantizeLinear"], names["DequantizeLinear"], names["Cast"]) == (6, 6, 0)
    assert names["Mul"] == 4  # the first alone is a scale: two uses, negative, more dimensions
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(made.model_proto.SerializeToString(), options)
    found = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    for ours, theirs in zip(found, model(x), strict=True):
        assert ours.shape == theirs.shape
        assert torch.equal(torch.from_numpy(ours), theirs)


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")
def test_other_models_are_left_as_they_are() -> None:
    x = torch.randn(4)
    made = torch.onnx.export(nn.Tanh().eval(), (x,), dynamo=True, verbose=False, optimize=False)
    before = [node.op_type for node in made.model.graph]
    assert not quantise_casts(made.model)
    assert [node.op_type for node in made.model.graph] == before
