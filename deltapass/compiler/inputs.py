"""Which inputs of a graph are weights and which are data, and what the tracer calls them.

Told by where the tracer took an input from. What data is to the pass, `roles` tells.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import torch
from torch import fx

from deltapass.graph.program import Input, Role, TensorSpec


def inputs_of(
    nodes: Sequence[fx.Node], names: Sequence[str], arguments: Sequence[Any]
) -> tuple[Input, ...]:
    """The inputs of a graph, weights apart from data.

    Args:
        nodes: The tracer's placeholders.
        names: Their names in the captured graph.
        arguments: What was given for each.
    """
    given = zip(nodes, names, arguments, strict=True)
    return tuple(_input(node, name, value) for node, name, value in given)


def _input(node: fx.Node, name: str, value: Any) -> Input:
    if not torch.is_tensor(value):
        return Input(name=name, role=Role.SIZE, spec=None)
    role = Role.WEIGHT if is_weight(node, value) else Role.DATA
    return Input(name=name, role=role, spec=TensorSpec.of(value))


def data_positions(module: fx.GraphModule, arguments: Sequence[Any]) -> tuple[int, ...]:
    """Positions of the inputs that may come in other shapes: all but parameters of fixed sizes."""
    given = enumerate(zip(module.graph.find_nodes(op="placeholder"), arguments, strict=True))
    return tuple(at for at, (node, value) in given if not _is_fixed(node, value))


def _is_fixed(node: fx.Node, value: Any) -> bool:
    traced = node.meta.get("example_value", value)
    plain = isinstance(value, torch.nn.Parameter)
    return plain and all(isinstance(size, int) for size in traced.shape)


def is_weight(node: fx.Node, value: Any) -> bool:
    """Whether an input is a parameter or was taken from a module."""
    return isinstance(value, torch.nn.Parameter) or is_state(source_of(node))


def source_of(node: fx.Node) -> str:
    """Where the tracer took an input from, such as `L['timestep']`; empty where it is not said."""
    if "source" in node.meta:
        return str(node.meta["source"])
    name = getattr(getattr(node, "_dynamo_source", None), "name", "")
    return str(name() if callable(name) else name)


def is_state(source: str) -> bool:
    """Whether it was taken from a module's parameters or buffers."""
    return re.search(r"(?:^|\.)_(parameters|buffers)\b", source) is not None


def argument_name(source: str) -> str | None:
    """`L['timestep']` and `L['kwargs']['timestep']` -> `timestep`."""
    found = re.search(r"\['(\w+)'\]$", source)
    return found.group(1) if found else None


def readable_name(node: fx.Node) -> str:
    """The argument's own name for data; Dynamo's long name for weights."""
    source, name = source_of(node), str(node.meta.get("name_before", node.name))
    if is_state(source):
        return name
    # A part of an argument that came through *args: the tracer's own name tells only its number.
    part = "_".join(re.findall(r"\w+", source.removeprefix("L"))) if "source" in node.meta else ""
    return argument_name(source) or part or name
