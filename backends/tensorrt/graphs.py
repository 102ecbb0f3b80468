"""Graphs made ready for TensorRT, and what of them it did not take."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any, Final

import torch
from deltapass.backends.tensor_graphs import exported
from torch import fx
from torch.export import ExportedProgram

from deltapass.graph.program import TensorSpec

TO_COPY: Final = torch.ops.aten._to_copy.default
INTEGERS: Final = frozenset({torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64})


def export(module: torch.nn.Module, inputs: Sequence[TensorSpec]) -> ExportedProgram:
    """The exported program of a module. Its graph says every promotion of an integer.

    Converters would round the other operand.
    """
    program: ExportedProgram = exported(module, inputs)
    for node in list(program.graph.nodes):
        if torch.Tag.pointwise in getattr(node.target, "tags", ()):
            _promote(node)
    return program


def _promote(node: fx.Node) -> None:
    """Before: mul(int64, 0.1). After: mul(_to_copy(int64, float32), 0.1)."""
    dtype = _computed_in(node)
    if dtype is None:
        return
    for given in dict.fromkeys(node.all_input_nodes):
        value = given.meta.get("val")
        # A boolean is a condition or a mask and stays one.
        if not torch.is_tensor(value) or value.dtype not in INTEGERS:
            continue
        mode: Any = value
        with node.graph.inserting_before(node), mode.fake_mode:
            cast = node.graph.call_function(TO_COPY, (given,), {"dtype": dtype})
            cast.meta["val"] = value.to(dtype)
        node.replace_input_with(given, cast)


def _computed_in(node: fx.Node) -> torch.dtype | None:
    """The floating type an operator computes in, or None: a comparison's result does not tell."""
    result = node.meta.get("val")
    if not torch.is_tensor(result):
        return None
    if result.dtype.is_floating_point:
        return result.dtype
    types = [
        torch.get_default_dtype() if isinstance(value, float) else value.meta["val"].dtype
        for value in node.args
        if isinstance(value, float) or (isinstance(value, fx.Node) and "val" in value.meta)
    ]
    floating = [dtype for dtype in types if dtype.is_floating_point]
    return floating[0] if floating and result.dtype is torch.bool else None


def operators_outside(module: fx.GraphModule) -> tuple[str, ...]:
    """Names of operators that torch runs: all that is in a graph rather than in an engine."""
    names: list[str] = []
    for node in module.graph.nodes:
        part = module.get_submodule(node.target) if node.op == "call_module" else None
        if isinstance(part, fx.GraphModule):
            names.extend(operators_outside(part))
        elif node.op in ("call_function", "call_method") and not _is_border(node):
            names.append(str(node.target))
    return tuple(dict.fromkeys(names))


def _is_border(node: fx.Node) -> bool:
    """Whether a node only hands values in or out: float64 is cast before it enters, and after."""
    if node.target is TO_COPY:
        enters = all(given.op == "placeholder" for given in node.all_input_nodes)
        return enters or all(user.op == "output" for user in node.users)
    return node.target is operator.getitem
