"""Casts to and from 8-bit floats as quantise and dequantise operators, which TensorRT asks for.

ONNX and ONNX Runtime take a cast; TensorRT makes tensors of this type by QuantizeLinear alone. With
scale 1 the two are the same. A constant factor behind a dequantise becomes its scale: a product
that follows then finds the pattern it can run in 8 bits.
"""

from __future__ import annotations

import math
from typing import Any, Final

from deltapass.libraries import optional_module

FLOAT8: Final = "FLOAT8E4M3FN"  # onnx_ir's name of the one that TensorRT knows
WIDER: Final = ("FLOAT", "FLOAT16", "BFLOAT16")  # what the two operators take and give


def quantise_casts(model: Any) -> bool:
    """Replace such casts in an ONNX model in memory, in place; whether any value has the type.

    A value beyond the type's largest becomes that largest. torch makes it NaN, so that a model
    which meets such values clamps them already.
    """
    nodes = list(model.graph.all_nodes())
    inner = (value for node in nodes for value in node.outputs)
    values = [*model.graph.inputs, *model.graph.initializers.values(), *inner]
    for node in nodes:
        if node.op_type == "Cast":
            _quantise(model, node)
    return any(_name(value.dtype) == FLOAT8 for value in values)


def _quantise(model: Any, cast: Any) -> None:
    source, result = cast.inputs[0], cast.outputs[0]
    given, made = _name(source.dtype), _name(result.dtype)
    if given in WIDER and made == FLOAT8:
        scale = _constant(model, 1.0, source.dtype)
        zero = _constant(model, 0.0, result.dtype)  # its type is the operator's
        _replace(cast, "QuantizeLinear", [source, scale, zero], result)
    elif given == FLOAT8 and made in WIDER:
        factor, scaled = _factor_behind(result)
        scale = _constant(model, factor, result.dtype)
        _replace(cast, "DequantizeLinear", [source, scale], scaled)


def _name(dtype: Any) -> str:
    return "" if dtype is None else str(dtype.name)


def _factor_behind(value: Any) -> tuple[float, Any]:
    """The constant that the value is multiplied with, and the product; else 1 and the value.

    It has to be a scale: one positive number, and no more dimensions than the value.
    """
    uses = list(value.uses())
    if len(uses) != 1 or uses[0].node.op_type != "Mul" or value.is_graph_output():
        return 1.0, value
    product = uses[0].node
    held = _held(product.inputs[1 - uses[0].idx])
    one = held is not None and held.size == 1 and held.ndim <= len(value.shape or ())
    if not one or product.graph is not value.producer().graph:
        return 1.0, value
    factor = float(held.reshape(()))
    return (factor, product.outputs[0]) if 0 < factor < math.inf else (1.0, value)


def _held(value: Any) -> Any:
    """The numpy array a value is, also through casts, which nothing has folded yet; else None."""
    maker = value.producer()
    if maker is not None and maker.op_type == "Cast" and value.dtype is not None:
        given = _held(maker.inputs[0])
        return None if given is None else given.astype(value.dtype.numpy())
    tensor = _library().convenience.get_const_tensor(value)
    return None if tensor is None else tensor.numpy()


def _replace(node: Any, operator: str, inputs: list[Any], made: Any) -> None:
    """Put an operator in a node's place, which makes `made`: the node's value or a later one."""
    ir = _library()
    new = ir.Node("", operator, inputs, num_outputs=1)
    old = list(dict.fromkeys((made.producer(), node)))
    ir.convenience.replace_nodes_and_values(node.graph, node, old, [new], [made], new.outputs)


def _constant(model: Any, number: float, dtype: Any) -> Any:
    """An initializer of one number; made once."""
    ir = _library()
    name = f"deltapass::{dtype.name.lower()}_{number!r}"  # no weight's name has colons
    known = model.graph.initializers
    if name not in known:
        numpy_type = dtype.numpy()
        tensor = ir.tensor(numpy_type.type(number), dtype=dtype, name=name)
        known[name] = ir.Value(
            name=name, type=ir.TensorType(dtype), shape=ir.Shape([]), const_value=tensor
        )
    return known[name]


def _library() -> Any:
    return optional_module("onnx_ir", "export")
