"""Casts to and from 8-bit floats as quantise and dequantise operators, which TensorRT asks for.

ONNX and ONNX Runtime take a cast; TensorRT makes tensors of this type by QuantizeLinear alone. With
scale 1 the two are the same. A constant factor behind a dequantise becomes its scale: a product
that follows then finds the pattern it can run in 8 bits.
"""

from __future__ import annotations

import importlib
import math
from typing import Any, Final

FLOAT8: Final = "FLOAT8E4M3FN"  # onnx_ir's name of the one that TensorRT knows


def quantise_casts(model: Any) -> bool:
    """Replace such casts in an ONNX model in memory, in place; whether any value has the type.

    A value beyond the type's largest becomes that largest. torch makes it NaN, so that a model
    which meets such values clamps them already.
    """
    nodes = list(model.graph.all_nodes())
    values = [*model.graph.inputs, *(value for node in nodes for value in node.outputs)]
    for node in nodes:
        if node.op_type == "Cast":
            _quantise(model, node)
    return any(_is_float8(value.dtype) for value in values)


def _quantise(model: Any, cast: Any) -> None:
    source, result = cast.inputs[0], cast.outputs[0]
    if _is_float8(source.dtype) == _is_float8(result.dtype):
        return
    if _is_float8(result.dtype):
        scale = _constant(model, 1.0, source.dtype)
        zero = _constant(model, 0.0, result.dtype)  # its type is the operator's
        _replace(cast, "QuantizeLinear", [source, scale, zero], result)
    else:
        factor, scaled = _factor_behind(result)
        scale = _constant(model, factor, result.dtype)
        _replace(cast, "DequantizeLinear", [source, scale], scaled)


def _is_float8(dtype: Any) -> bool:
    return dtype is not None and dtype.name == FLOAT8


def _factor_behind(value: Any) -> tuple[float, Any]:
    """The constant that the value is multiplied with, and the product; else 1 and the value.

    It has to be a scale: one positive number, and no more dimensions than the value.
    """
    uses = list(value.uses())
    if len(uses) == 1 and uses[0].node.op_type == "Mul" and not value.is_graph_output():
        product = uses[0].node
        held = _held(product.inputs[1 - uses[0].idx])
        if held is not None and held.size == 1 and len(held.shape) <= len(value.shape or ()):
            factor = float(held.numpy().reshape(()))
            if 0 < factor < math.inf:
                return factor, product.outputs[0]
    return 1.0, value


def _held(value: Any) -> Any:
    """The constant a value is, also through casts, which nothing has folded yet; else None."""
    while (maker := value.producer()) is not None and maker.op_type == "Cast":
        value = maker.inputs[0]
    return _library().convenience.get_const_tensor(value)


def _replace(node: Any, operator: str, inputs: list[Any], made: Any) -> None:
    """Put an operator in a node's place, which makes `made`: the node's value or a later one."""
    ir = _library()
    new = ir.Node("", operator, inputs, num_outputs=1)
    result, name = new.outputs[0], made.name
    result.type, result.shape = made.type, made.shape
    node.graph.insert_before(node, new)
    made.replace_all_uses_with(result, replace_graph_outputs=True)
    made.name, result.name = f"{name}_replaced", name
    for last in dict.fromkeys((made.producer(), node)):
        last.graph.remove(last, safe=True)


def _constant(model: Any, number: float, dtype: Any) -> Any:
    """An initializer of one number; made once."""
    ir = _library()
    name = f"{dtype.name.lower()}_{number!r}"
    known = model.graph.initializers
    if name not in known:
        numpy_type = dtype.numpy()
        tensor = ir.tensor(numpy_type.type(number), dtype=dtype, name=name)
        known[name] = ir.Value(
            name=name, type=ir.TensorType(dtype), shape=ir.Shape([]), const_value=tensor
        )
    return known[name]


def _library() -> Any:
    return importlib.import_module("onnx_ir")
