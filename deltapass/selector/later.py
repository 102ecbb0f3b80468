"""Whether a graph is a later one of a model: another that reads the same weights is cached already.

A schedule that does not fit a model's first graph is a mistake of the user's, and raised. A later
graph, which skips layers or has adapters, comes in the middle of an image, and runs in full.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Iterator
from typing import Any, final

import torch

from deltapass.graph.wrapped import plain_tensors


@final
class Mark(weakref.ref[torch.Tensor]):
    """Says of a weight, for as long as it is held, that a cached graph reads it."""

    __slots__ = ()


def marks(arguments: Iterable[Any]) -> tuple[Mark, ...]:
    """Marks on the weights among a graph's inputs."""
    return tuple(map(Mark, _weights(arguments)))


def is_later_graph(arguments: Iterable[Any]) -> bool:
    """Whether a weight among a graph's inputs is marked."""
    weights = _weights(arguments)
    return any(isinstance(held, Mark) for w in weights for held in weakref.getweakrefs(w))


def _weights(arguments: Iterable[Any]) -> Iterator[torch.Tensor]:
    """The parameters; of one that holds other tensors these, for torch moves no marked wrapper."""
    for value in arguments:
        if isinstance(value, torch.nn.Parameter):
            yield from plain_tensors(value)
