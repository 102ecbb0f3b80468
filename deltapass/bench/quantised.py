"""Linear layers in 8 bits, by torch's own integer product: one scale a weight's row and a token."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

LARGEST = 127
LEAST_ROWS = 17  # fewer are not worth it, and CUDA's product takes none


class Int8Linear(nn.Module):
    """A linear layer whose weight is kept, and multiplied, in 8 bits.

    The input is rounded too, a scale a token, at every call: nothing need be calibrated.
    """

    weight: Tensor
    scale: Tensor

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        weight = linear.weight.detach()
        scale = weight.float().abs().amax(1).clamp_min(1e-12) / LARGEST
        rounded = (weight.float() / scale[:, None]).round().to(torch.int8)
        self.register_buffer("weight", rounded)
        self.register_buffer("scale", scale.to(weight.dtype))
        self.bias = linear.bias

    def forward(self, x: Tensor) -> Tensor:
        """X (..., K) -> (..., N)."""
        rows = x.reshape(-1, x.shape[-1])
        if len(rows) < LEAST_ROWS:
            full = self.weight.to(x.dtype) * self.scale[:, None]
            return nn.functional.linear(x, full, self.bias)
        step = rows.abs().amax(1, keepdim=True).clamp_min(1e-8) / LARGEST
        rounded = (rows / step).round().to(torch.int8)
        product = torch._int_mm(rounded, self.weight.t())
        out = product.to(x.dtype) * step * self.scale
        out = out if self.bias is None else out + self.bias
        return out.reshape(*x.shape[:-1], -1)


def quantised(model: nn.Module) -> nn.Module:
    """A copy with every linear layer in 8 bits; all else is shared with the model."""
    made = shared_copy(model)
    _exchange(made)
    return made


def shared_copy(model: nn.Module) -> nn.Module:
    """A copy of the modules alone: all tensors are those of the model."""
    shared: dict[int, Any] = {
        id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())
    }
    return copy.deepcopy(model, shared)


def _exchange(model: nn.Module) -> None:
    for name, child in list(model.named_children()):
        if isinstance(child, nn.Linear):
            setattr(model, name, Int8Linear(child))
        else:
            _exchange(child)
