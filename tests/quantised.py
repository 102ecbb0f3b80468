"""Linear layers that quantise their input and weight to 8 bits, in the two ways that export."""

from __future__ import annotations

import torch
import torch.ao.quantization.fx._decomposed  # defines torch.ops.quantized_decomposed
from torch import Tensor, nn

decomposed = torch.ops.quantized_decomposed
FLOAT8 = torch.float8_e4m3fn
STEP = 0.05  # of the inputs


class Int8Linear(nn.Module):
    """By the operators that PT2E quantisation leaves in a graph."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.step = (linear.weight.abs().amax() / 127).item()
        rounded = decomposed.quantize_per_tensor(linear.weight, *self.bounds(self.step))
        self.register_buffer("q", rounded)
        self.bias = linear.bias

    @staticmethod
    def bounds(step: float) -> tuple[float, int, int, int, torch.dtype]:
        return step, 0, -128, 127, torch.int8

    def forward(self, x: Tensor) -> Tensor:
        bounds = self.bounds(STEP)
        x = decomposed.dequantize_per_tensor(decomposed.quantize_per_tensor(x, *bounds), *bounds)
        weight = decomposed.dequantize_per_tensor(self.q, *self.bounds(self.step))
        return nn.functional.linear(x, weight, self.bias)


class Float8Linear(nn.Module):
    """By casts."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.step = (linear.weight.abs().amax() / 448).item()
        # A parameter, the first of the model: not the type it computes in.
        self.q = nn.Parameter((linear.weight / self.step).to(FLOAT8), requires_grad=False)
        self.bias = linear.bias

    def forward(self, x: Tensor) -> Tensor:
        x = (x / STEP).clamp(-448, 448).to(FLOAT8).to(x.dtype) * STEP
        return nn.functional.linear(x, self.q.to(x.dtype) * self.step, self.bias)


def quantise(model: nn.Module, kind: type[Int8Linear] | type[Float8Linear]) -> nn.Module:
    """Exchange every linear layer, in place."""
    for name, child in list(model.named_children()):
        if isinstance(child, nn.Linear):
            setattr(model, name, kind(child))
        else:
            quantise(child, kind)
    return model
