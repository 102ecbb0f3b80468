"""How far results lie apart, and the inputs of an example call at other sizes."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

import torch
from torch.fx import GraphModule, Node
from torch.utils import _pytree as pytree

# Largest error over largest value that an engine's own rounding may cause, by type of the weights.
TOLERANCES: Final[Mapping[str, float]] = {"float32": 2e-5, "float16": 2e-2, "bfloat16": 1e-1}
# Of a model that rounds to 8 bits as it runs: what lies between two steps goes to either, by the
# last bit of what an engine computed.
TO_8_BITS: Final = 1e-1


def rounds_to_8_bits(modules: Iterable[GraphModule]) -> bool:
    """Whether a graph rounds floating-point values to a type of 8 bits as it runs."""
    nodes = (node for module in modules for node in module.graph.nodes)
    return any(
        _size(node, floating=False) == 1 and any(_size(n) > 1 for n in node.all_input_nodes)
        for node in nodes
    )


def _size(node: Node, floating: bool = True) -> int:
    """Bytes of one number that a node makes; 0 for what is none, or not of that kind."""
    value = node.meta.get("val")
    if not isinstance(value, torch.Tensor) or value.dtype == torch.bool:
        return 0
    return value.dtype.itemsize if value.dtype.is_floating_point or not floating else 0


def relative_error(given: Sequence[Any], wanted: Sequence[Any]) -> float:
    """Largest difference over largest value, over all tensors of two results."""
    pairs = zip(given, wanted, strict=True)
    errors = [0.0, *(_error(one, two) for one, two in pairs if isinstance(two, torch.Tensor))]
    # max() of Python drops a NaN unless it comes first
    return float("nan") if any(map(math.isnan, errors)) else max(errors)


def _error(given: torch.Tensor, wanted: torch.Tensor) -> float:
    if given.shape != wanted.shape:
        return math.inf
    if not wanted.numel():
        return 0.0
    ours, theirs = given.to("cpu", torch.float64), wanted.to("cpu", torch.float64)
    finite = theirs[theirs.isfinite()].abs()
    scale = finite.max() if finite.numel() else torch.tensor(1.0)
    # Masks hold infinities, which are equal and have no difference; nor has NaN where there is one.
    same = (ours == theirs) | (ours.isnan() & theirs.isnan())
    difference = (ours - theirs).abs().masked_fill(same, 0.0).max()
    return float(difference / scale.clamp_min(torch.finfo(torch.float32).tiny))


def resized(tensor: torch.Tensor, shape: Sequence[int]) -> torch.Tensor:
    """A tensor repeated or cut to a shape."""
    for axis, size in enumerate(shape):
        at = torch.arange(size, device=tensor.device) % tensor.shape[axis]
        tensor = tensor.index_select(axis, at)
    return tensor.contiguous()


def called_with(
    call: Mapping[str, Any], example: Mapping[str, torch.Tensor], inputs: Mapping[str, torch.Tensor]
) -> dict[str, Any]:
    """An example call with other tensors.

    Args:
        call: Parameter name -> argument of the example call.
        example: Input name -> its tensor in that call.
        inputs: Input name -> the tensor that takes its place.
    """
    names = {id(tensor): name for name, tensor in example.items()}
    changed: dict[str, Any] = pytree.tree_map_only(
        torch.Tensor, lambda tensor: inputs.get(names[id(tensor)], tensor), dict(call)
    )
    return changed
