"""Have the weights of a model changed since a branch's last call?

A weight is the same if it is the same object, in the same memory, and counts no change. Addresses
alone do not tell: what is made after something was freed may lie where that lay.
"""

from __future__ import annotations

import operator
import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, final

import torch

_VERSION: Final = operator.attrgetter("_version")


@final
@dataclass(frozen=True, slots=True)
class Weighed:
    """Weights as they were: the objects (weakly held), their versions, their places in memory."""

    objects: list[weakref.ref[Any]]
    versions: list[int]
    places: list[int]


def weigh(weights: Sequence[Any]) -> Weighed:
    """Note how the weights are. Some hundred of them at every call: `map` is the quickest way.

    Not seen: `weight.data.mul_()`, and in-place changes of inference tensors; neither is counted.
    """
    try:
        versions = list(map(_VERSION, weights))
        places = list(map(torch.Tensor.data_ptr, weights))
    except RuntimeError:  # an inference tensor keeps no version, a wrapper has no memory
        versions = [_or_none(_VERSION, weight) for weight in weights]
        places = [_or_none(torch.Tensor.data_ptr, weight) for weight in weights]
    return Weighed(list(map(weakref.ref, weights)), versions, places)


def same_weights(one: Weighed, other: Weighed) -> bool:
    """Whether nothing was changed, replaced or moved in between."""
    # A weak reference is made once for each object, so the same object has the same reference.
    return (
        one.versions == other.versions
        and one.places == other.places
        and len(one.objects) == len(other.objects)
        and all(map(operator.is_, one.objects, other.objects))
    )


def _or_none(read: Any, weight: Any) -> int:
    try:
        return int(read(weight))
    except RuntimeError:
        return -1
