"""Inputs that are added to a residual stream between blocks, such as those of a control network.

They are made anew for every step, from the noisy sample: they belong to the step and say nothing
about whose trajectory it is, unlike prompts and labels.
"""

from __future__ import annotations

import operator
from typing import Final

import torch
from torch import fx

from deltapass.graphs import Captured, Role
from deltapass.sums import ADDITIONS, CARRIERS, PARTS, same_shape

aten = torch.ops.aten

SCALED: Final = frozenset({operator.mul, torch.mul, "mul", aten.mul.Tensor, aten.mul.Scalar})


def residual_inputs(captured: Captured) -> frozenset[str]:
    """Names of the data inputs that are only ever added, perhaps scaled, to a value."""
    data = {given.name for given in captured.inputs if given.role is Role.DATA}
    return frozenset(
        node.name
        for node in captured.module.graph.nodes
        if node.op == "placeholder" and node.name in data
        if _only_added(node, captured)
    )


def _only_added(value: fx.Node, captured: Captured) -> bool:
    return bool(value.users) and all(_is_added(user, value, captured) for user in value.users)


def _is_added(user: fx.Node, value: fx.Node, captured: Captured) -> bool:
    """Whether `user` adds `value` to something of its shape, or hands it on to such a sum."""
    if user.target in ADDITIONS:
        return same_shape(captured, value, user)
    scaled = user.target in SCALED and len(user.all_input_nodes) == 1
    handed_on = scaled or user.target in CARRIERS or user.target in PARTS
    return handed_on and _only_added(user, captured)
