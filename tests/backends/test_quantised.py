"""Quantised models in bundles: 8-bit weights, operators TensorRT takes, the model's own values.

All but the casts takes a minute: `pytest tests/backends/test_quantised.py -m slow`.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from msgspec.structs import replace

pytest.importorskip("onnx")
pytest.importorskip("onnxscript")
pytest.importorskip("onnxruntime")

import onnx
import onnx_ir as ir
import onnxruntime
from deltapass.backends.onnx.float8 import quantise_casts
from deltapass.backends.onnx.format import _torch_tensor
from deltapass.backends.tensorrt.build import Settings, architectures_of
from deltapass.backends.tensorrt.library import Library
from models import make
from quantised import FLOAT8, Float8Linear, Int8Linear, quantise
from torch import Tensor, nn

import deltapass
from deltapass.errors import BundleError, VerificationError
from deltapass.exporting import verify
from deltapass.exporting.compare import TO_8_BITS

LINEARS, INPUTS = 6, 5  # of a block: query, key and value share theirs
INT8, FP8 = onnx.TensorProto.INT8, onnx.TensorProto.FLOAT8E4M3FN


def export(kind: Any, folder: Path, **options: Any) -> deltapass.BundlePlan:
    model = make("adaln")
    args, kwargs = model.inputs(999.0, 0)
    if "schedule" not in options:
        options["interval"] = 2  # the paper's schedule, which parts the blocks
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
    assert plan.attributes["dtype"] == "float32"
    assert plan.verified is not None and plan.verified["tolerance"] == TO_8_BITS
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
def test_where_engines_differ_by_whole_steps_a_wrong_weight_is_found_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = verify.row_errors

    def wrong(plan: deltapass.BundlePlan, *given: Any) -> Any:
        table = [
            replace(row, weights=[[w + 1e-3 for w in v] for v in row.weights]) for row in plan.table
        ]
        return right(replace(plan, table=table), *given)

    monkeypatch.setattr(verify, "row_errors", wrong)
    with pytest.raises(VerificationError, match=r"row .* more than the tolerance of 2e-05"):
        export(Int8Linear, tmp_path / "b", schedule="balanced")


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

    with pytest.raises(BundleError, match="ONNX Runtime refuses"):
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


FLOAT, HALF, INT32 = onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16, onnx.TensorProto.INT32


def rewritten(nodes: list[Any], ends: tuple[int, int], **held: Tensor) -> tuple[bool, Any]:
    """A graph from x (4, 4) to y after `quantise_casts`, and whether it found 8-bit floats."""
    store = [ir.to_proto(ir.tensor(value, name=name)) for name, value in held.items()]
    given, made = (
        onnx.helper.make_tensor_value_info(name, kind, [4, 4])
        for name, kind in zip("xy", ends, strict=True)
    )
    graph = onnx.helper.make_graph(nodes, "g", [given], [made], store)
    proto = onnx.shape_inference.infer_shapes(onnx.helper.make_model(graph))
    model = ir.from_proto(proto)
    found = quantise_casts(model)
    proto = ir.to_proto(model)
    onnx.checker.check_model(proto, full_check=True)
    return found, proto.graph


def node(kind: str, given: list[str], made: str, **attributes: Any) -> Any:
    return onnx.helper.make_node(kind, given, [made], **attributes)


def scale(graph: Any) -> float:
    (operator,) = (n for n in graph.node if n.op_type == "DequantizeLinear")
    (held,) = (i for i in graph.initializer if i.name == operator.input[1])
    return float(onnx.numpy_helper.to_array(held))


def test_weights_alone_count_as_8_bit_floats() -> None:
    nodes = [node("Cast", ["w"], "wide", to=FLOAT), node("MatMul", ["x", "wide"], "y")]
    found, graph = rewritten(nodes, (FLOAT, FLOAT), w=torch.ones(4, 4).to(FLOAT8))
    assert found
    assert [n.op_type for n in graph.node] == ["DequantizeLinear", "MatMul"]


@pytest.mark.parametrize(
    ("kind", "factor", "expected"),
    [
        (FLOAT, [(0.3, torch.float32)], 0.3),
        (FLOAT, [(0.3, torch.bfloat16), FLOAT], 0.30078125),  # as the graph rounds it
        (HALF, [(1e-8, torch.float32), HALF], 1.0),  # 0 in float16, which is no scale
        (FLOAT, [(-0.3, torch.float32)], 1.0),
    ],
)
def test_a_factor_becomes_the_scale_it_is_in_the_graph(
    kind: int, factor: list[Any], expected: float
) -> None:
    (number, dtype), *casts = factor
    nodes, name = [node("Cast", ["x"], "back", to=kind)], "f"
    for at, to in enumerate(casts):
        nodes.append(node("Cast", [name], f"f{at}", to=to))
        name = f"f{at}"
    nodes.append(node("Mul", ["back", name], "y"))
    _, graph = rewritten(nodes, (FP8, kind), f=torch.tensor(number, dtype=dtype))
    assert scale(graph) == pytest.approx(expected, rel=1e-7)
    assert ("Mul" in {n.op_type for n in graph.node}) == (expected == 1.0)


@pytest.mark.parametrize(("given", "made"), [(onnx.TensorProto.DOUBLE, FP8), (FP8, INT32)])
def test_casts_the_operators_do_not_take_stay(given: int, made: int) -> None:
    _, graph = rewritten([node("Cast", ["x"], "y", to=made)], (given, made))
    assert [n.op_type for n in graph.node] == ["Cast"]


@pytest.mark.parametrize("dtype", [torch.bfloat16, FLOAT8])
def test_weights_that_folding_changed_are_stored(dtype: torch.dtype) -> None:
    weight = torch.randn(4, 8).to(dtype)
    folded = ir.Tensor(ir.tensor(weight).numpy().transpose().copy())
    assert torch.equal(_torch_tensor(folded).float(), weight.t().float())


def test_engines_with_8_bit_floats_are_for_gpus_that_have_them() -> None:
    known = dict.fromkeys(("SM75", "SM80", "SM89", "SM120"))
    trt = SimpleNamespace(ComputeCapability=SimpleNamespace(__members__=known))
    library = Library(module=trt, flavour="tensorrt-rtx", version="")
    assert architectures_of(Settings(), library)[0] == "SM80"
    assert architectures_of(Settings(), library, float8=True)[0] == "SM89"


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")
def test_other_models_are_left_as_they_are() -> None:
    x = torch.randn(4)
    made = torch.onnx.export(nn.Tanh().eval(), (x,), dynamo=True, verbose=False, optimize=False)
    before = [node.op_type for node in made.model.graph]
    assert not quantise_casts(made.model)
    assert [node.op_type for node in made.model.graph] == before
