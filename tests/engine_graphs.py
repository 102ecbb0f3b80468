"""Small ONNX graphs, and a folder to save them in, for the tests of engines.

Import this module only behind `pytest.importorskip("onnx")`.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

D = 8


def weight(seed: int = 0, dtype: Any = np.float32) -> Any:
    values = np.random.default_rng(seed).standard_normal((D, D)).astype(dtype)
    return numpy_helper.from_array(values, "w")


def product(*, batch: Any = 2, held: Any = None, operator: str = "Relu") -> Any:
    """y = relu(x @ w)."""
    held = weight() if held is None else held
    nodes = [
        helper.make_node("MatMul", ["x", held.name], ["inner"], name="first"),
        helper.make_node(operator, ["inner"], ["y"], name="second"),
    ]
    kind = held.data_type
    graph = helper.make_graph(
        nodes,
        "product",
        [helper.make_tensor_value_info("x", kind, [batch, D])],
        [helper.make_tensor_value_info("y", kind, [batch, D])],
        [held],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)


def scaled(factor: float, *, swapped: bool = False) -> Any:
    """out = relu(x * factor) + y."""
    held = numpy_helper.from_array(np.float32(factor), "factor")
    one, two = ("y", "x") if swapped else ("x", "y")
    nodes = [
        helper.make_node("Mul", [one, "factor"], ["a"]),
        helper.make_node("Relu", ["a"], ["b"]),
        helper.make_node("Add", ["b", two], ["out"]),
    ]
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [2, D]) for name in "xy"]
    given = helper.make_tensor_value_info("out", TensorProto.FLOAT, [2, D])
    graph = helper.make_graph(nodes, "scaled", values, [given], [held])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)


@dataclass
class Files:
    folder: Path
    made: int = 0

    def __call__(self, model: Any, **options: Any) -> Path:
        self.made += 1
        folder = self.folder / str(self.made)
        folder.mkdir()
        onnx.save(model, str(folder / "model.onnx"), **options)
        return folder / "model.onnx"


EXTERNAL: dict[str, Any] = {
    "save_as_external_data": True,
    "location": "weights.data",
    "size_threshold": 0,
}
