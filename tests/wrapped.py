"""Weights that hold other tensors, written by hand: in 8 bits with a scale, and their like."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

aten = torch.ops.aten
SAME = {aten.detach.default, aten.alias.default, aten.clone.default}


class Scaled8Bit(torch.Tensor):
    """A weight in two tensors, which operators see as one, as torchao makes them.

    `offset` is no tensor: it is of the weight's context, and part of the code that is compiled.
    """

    q: Tensor
    s: Tensor
    offset: float

    @staticmethod
    def __new__(cls, q: Tensor, s: Tensor, offset: float = 0.0) -> Scaled8Bit:
        made = torch.Tensor._make_wrapper_subclass(cls, q.shape, dtype=s.dtype, device=q.device)
        made.q, made.s, made.offset = q, s, offset
        return made

    def __tensor_flatten__(self) -> tuple[list[str], dict[str, float]]:
        return ["q", "s"], {"offset": self.offset}

    @classmethod
    def __tensor_unflatten__(
        cls, inner: dict[str, Tensor], context: dict[str, float], *_: Any
    ) -> Scaled8Bit:
        return cls(inner["q"], inner["s"], context["offset"])

    def __repr__(self) -> str:  # torch's own reads numbers
        return "Scaled8Bit"

    def _stable_hash_for_caching(self) -> str:
        return f"{self!r}, {self.offset}"

    def of(self, func: Any, *args: Any) -> Scaled8Bit:
        """Such a weight, of a function of its tensors."""
        return type(self)(func(self.q, *args), func(self.s, *args), self.offset)

    def dense(self) -> Tensor:
        return self.q * self.s + self.offset

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in SAME:
            return args[0].of(func)
        if func is aten.copy_.default:
            args[0].q.copy_(args[1].q)
            args[0].s.copy_(args[1].s)
            return args[0]
        if func is aten._to_copy.default:
            made = func(args[0].s, **(kwargs or {}))
            return cls(args[0].q.to(made.device), made, args[0].offset)
        args, kwargs = pytree.tree_map_only(cls, lambda w: w.dense(), (args, kwargs or {}))
        return func(*args, **kwargs)


class Nested8Bit(Scaled8Bit):
    """One whose scale is such a tensor itself."""

    def dense(self) -> Tensor:
        return self.q * (self.s * 1.0) + self.offset


class Secret8Bit(Scaled8Bit):
    """One that does not say what it holds."""

    __tensor_flatten__ = property()  # type: ignore[assignment]
    __tensor_unflatten__ = property()  # type: ignore[assignment]


def rounded(weight: Tensor) -> tuple[Tensor, Tensor]:
    """The nearest whole numbers from -127 to 127, and the scale of each row."""
    scale = weight.detach().abs().amax(1, keepdim=True) / 127
    return (weight.detach() / scale).round().to(torch.int8), scale


def scaled(model: nn.Module, kind: type[Scaled8Bit] = Scaled8Bit, offset: float = 0.0) -> nn.Module:
    """Quantise all linear layers of a model's blocks, in place."""
    for layer in model.blocks.modules():  # type: ignore[union-attr]
        if isinstance(layer, nn.Linear):
            numbers, scale = rounded(layer.weight)
            if kind is Nested8Bit:
                scale = Scaled8Bit(*rounded(scale))
            weight = kind(numbers, scale, offset)
            layer.weight = nn.Parameter(weight, requires_grad=False)
    return model.requires_grad_(False)
