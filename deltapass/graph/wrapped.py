"""Tensors that hold others, such as quantised and distributed weights: how one is made up.

Such a tensor says itself what it holds (`__tensor_flatten__`) and how it is made again of that
(`__tensor_unflatten__`), as torch.compile asks of it: the tensors by the names of its attributes,
which may also hold such objects as a device mesh, and a context of everything else.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, final

import torch
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from deltapass.graph.keys import Compared

if TYPE_CHECKING:
    from deltapass.graph.program import TensorSpec


@final
@dataclass(frozen=True, slots=True)
class Wrapped:
    """How a tensor that holds others is made up, without their data.

    Two are equal if all of that is: then code compiled for one fits the other.

    Attributes:
        kind: Its class.
        parts: Name -> spec of the tensors that it holds.
        others: Name -> what else it holds under a name.
        context: The rest.
    """

    kind: type[Any]
    parts: tuple[tuple[str, TensorSpec], ...]
    others: tuple[tuple[str, Compared], ...]
    context: Compared

    @staticmethod
    def of(tensor: torch.Tensor, spec_of: Callable[[torch.Tensor], TensorSpec]) -> Wrapped | None:
        """How a real or fake tensor is made up; None for one that holds no others."""
        if not holds_tensors(tensor):
            return None
        held = tuple(held_by(tensor))
        parts = ((name, spec_of(value)) for name, value in held if torch.is_tensor(value))
        others = ((name, Compared(value)) for name, value in held if not torch.is_tensor(value))
        context = Compared(_flattened(tensor)[1])
        return Wrapped(type(tensor), tuple(parts), tuple(others), context)

    @property
    def paths(self) -> tuple[str, ...]:
        """Where the plain tensors within lie: dotted names of attributes."""
        found: list[str] = []
        for name, spec in self.parts:
            inner = spec.wrapped.paths if spec.wrapped is not None else ()
            found += [f"{name}.{path}" for path in inner] or [name]
        return tuple(found)

    def around(
        self, parts: Mapping[str, Any], shape: tuple[int, ...], stride: tuple[int, ...]
    ) -> torch.Tensor:
        """Such a tensor of these parts."""
        held = {**parts, **{name: other.value for name, other in self.others}}
        made: torch.Tensor = self.kind.__tensor_unflatten__(
            held, self.context.value, torch.Size(shape), stride
        )
        return made


def holds_tensors(value: Any) -> bool:
    """Whether a value is a tensor that holds others, and says which."""
    return type(value) is not torch.Tensor and is_traceable_wrapper_subclass(value)


def held_by(tensor: Any) -> Iterator[tuple[str, Any]]:
    """What a tensor holds under names: tensors, nearly always."""
    for name in _flattened(tensor)[0]:
        yield name, getattr(tensor, name)


def _flattened(tensor: Any) -> tuple[list[str], Any]:
    names, context = tensor.__tensor_flatten__()
    return list(names), context


def plain_tensors(tensor: Any) -> Iterator[torch.Tensor]:
    """The plain tensors within one; of a plain one, itself."""
    if not holds_tensors(tensor):
        yield tensor
        return
    for _, value in held_by(tensor):
        if torch.is_tensor(value):
            yield from plain_tensors(value)
