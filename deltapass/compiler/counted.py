"""Multiply-accumulates of single operators, by torch's own FLOP formulas (2 FLOPs a MAC)."""

from __future__ import annotations

from typing import Any, Final

import torch
from torch.utils.flop_counter import flop_registry, sdpa_flop_count

from deltapass.graph.program import Macs

aten = torch.ops.aten

# What the paper counts: layers with weights. Attention's own products (bmm, sdpa) are left out.
LAYER_OPERATORS: Final = frozenset(
    {aten.mm, aten.addmm, aten.convolution, aten._convolution, aten.cudnn_convolution}
)
# On a sliced input torch runs a linear layer as a batched product; it stays a layer.
LAYERS: Final = frozenset({torch.nn.functional.linear, aten.linear.default})
# Layers whose weights are quantised, in the operators that they are made of.
QUANTISED: Final = frozenset(
    {aten._int_mm, aten._weight_int8pack_mm, aten._weight_int4pack_mm, aten._scaled_mm}
)


def macs_of(func: Any, args: Any, kwargs: Any, out: Any) -> Macs:
    """MACs of one primitive operation by torch's own FLOP formulas (2 FLOPs a MAC)."""
    packet = getattr(func, "_overloadpacket", None)
    if packet in QUANTISED:
        return macs_of_layer(out, *args)
    if packet in flop_registry:
        flops = flop_registry[packet](*args, **kwargs, out_val=out)
    elif "scaled_dot_product" in str(packet) and "backward" not in str(packet):
        # The CPU kernel has no entry in torch's table; the formula is the same.
        shapes = (tuple(tensor.shape) for tensor in args[:3])
        flops = sdpa_flop_count(*shapes)  # type: ignore[no-untyped-call]
    else:
        return Macs()
    return Macs(flops / 2 if packet in LAYER_OPERATORS else 0.0, flops / 2)


def macs_of_layer(out: torch.Tensor, given: torch.Tensor, *_: Any) -> Macs:
    """MACs of a linear layer whose weight has operators of its own, which torch has no formula for.

    They are those of a plain weight: what is counted is the model, not how a weight is kept.
    """
    return Macs(*(2 * [float(out.numel() * given.shape[-1])]))
