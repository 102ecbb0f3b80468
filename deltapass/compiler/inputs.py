"""Stage 1, last part: which inputs are weights, the timestep, the noisy sample, other data.

Told by where the tracer took an input from and by its name; the sample by its shape.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Final

import torch
from torch import fx
from torch.utils._pytree import tree_iter

from deltapass.graph.program import Input, Role, TensorSpec

TIMESTEP_NAMES: Final = frozenset(
    {"timestep", "timesteps", "t", "time", "sigma", "sigmas", "noise_level"}
)
# Names that denoisers give the noisy sample, where the shape alone leaves a choice.
SAMPLE_NAMES: Final = frozenset({"hidden_states", "sample", "latents", "x", "latent_model_input"})


def classify(
    nodes: Sequence[fx.Node], names: Sequence[str], arguments: Sequence[Any], output: Any
) -> tuple[Input, ...]:
    """Say of every input what it is to the pass.

    Args:
        nodes: The tracer's placeholders.
        names: Their names in the captured graph.
        arguments: What was given for each.
        output: What the graph returned.
    """
    outputs = [leaf for leaf in tree_iter(output) if torch.is_tensor(leaf)]
    given = zip(nodes, names, arguments, strict=True)
    inputs = [_input(node, name, value) for node, name, value in given]
    alike = [i for i in inputs if i.role is Role.DATA and _like_output(i, outputs)]
    named = [i for i in alike if i.name in SAMPLE_NAMES]
    sample = next(iter([*named, *alike]), None)
    return tuple(replace(i, role=Role.SAMPLE) if i is sample else i for i in inputs)


def _input(node: fx.Node, name: str, value: Any) -> Input:
    if not torch.is_tensor(value):
        return Input(name=name, role=Role.SIZE, spec=None)
    if _is_weight(node, value):
        role = Role.WEIGHT
    else:
        named = argument_name(source_of(node))
        role = Role.TIMESTEP if named in TIMESTEP_NAMES else Role.DATA
    return Input(name=name, role=role, spec=TensorSpec.of(value))


def data_positions(module: fx.GraphModule, arguments: Sequence[Any]) -> tuple[int, ...]:
    """Positions of the inputs that may come in other shapes: all but parameters of fixed sizes."""
    given = enumerate(zip(module.graph.find_nodes(op="placeholder"), arguments, strict=True))
    return tuple(at for at, (node, value) in given if not _is_fixed(node, value))


def _is_fixed(node: fx.Node, value: Any) -> bool:
    traced = node.meta.get("example_value", value)
    plain = isinstance(value, torch.nn.Parameter)
    return plain and all(isinstance(size, int) for size in traced.shape)


def _is_weight(node: fx.Node, value: Any) -> bool:
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
    return name if is_state(source) else argument_name(source) or name


def _like_output(candidate: Input, outputs: Sequence[torch.Tensor]) -> bool:
    """Whether an input has the output's shape up to the channels, as the noisy sample does."""
    spec = candidate.spec
    if spec is None or not outputs or not spec.dtype.is_floating_point:
        return False
    ours, theirs = list(spec.shape), list(outputs[0].shape)
    if len(ours) != len(theirs) or len(ours) < 2:
        return False
    channel = 1 if len(ours) > 3 else -1
    del ours[channel], theirs[channel]
    return ours == theirs
