"""Have the weights of a model changed since a branch's last call?

A weight is the same if it is the same object, in the same memory, and counts no change. Addresses
alone do not tell: what is made after something was freed may lie where that lay.
"""

from __future__ import annotations

import operator
import weakref
from array import array
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final, final

import torch

from deltapass.sessions.native import NativeCheck

_VERSION: Final = operator.attrgetter("_version")
NO_VERSION: Final = -1  # of an inference tensor
NO_PLACE: Final = 2**64 - 1  # of a wrapper, which has no memory; some devices use all other bits
PLAIN: Final = frozenset({torch.Tensor, torch.nn.Parameter, torch.nn.Buffer})
MANY: Final = 128  # weights from which on it pays to build the compiled check


@final
@dataclass(frozen=True, slots=True)
class Weighed:
    """Weights as they were: the objects (weakly held), their versions, their places in memory.

    `plain` says that none is of a subclass, which may answer for another tensor inside it.
    """

    objects: list[weakref.ref[Any]]
    versions: array[int]
    places: array[int]
    plain: bool

    def still_holds(self, weights: Sequence[Any]) -> bool:
        """Whether these are the same objects, and nothing was changed or moved since."""
        return (
            len(weights) == len(self.objects)
            and all(map(operator.is_, map(operator.call, self.objects), weights))
            and self.versions == _versions(weights)
            and self.places == _places(weights)
        )


def weigh(weights: Sequence[Any]) -> Weighed:
    """Note how the weights are.

    Not seen: `weight.data.mul_()`, and in-place changes of inference tensors; neither is counted.
    """
    plain = PLAIN.issuperset(map(type, weights))
    return Weighed(list(map(weakref.ref, weights)), _versions(weights), _places(weights), plain)


def same_weights(one: Weighed, other: Weighed) -> bool:
    """Whether nothing was changed, replaced or moved in between."""
    # A weak reference is made once for each object, so the same object has the same reference.
    return one is other or (
        one.versions == other.versions
        and one.places == other.places
        and len(one.objects) == len(other.objects)
        and all(map(operator.is_, one.objects, other.objects))
    )


@final
class WeightWatch:
    """Looks at the weights of one compiled graph at every call.

    While nothing changes, `look` gives the same object, so that a branch knows by its identity
    that its deltas belong to these weights. A few microseconds for some hundred weights with the
    check compiled from unchanged.cpp; about ten times as much while, or where, there is none.
    """

    def __init__(self, positions: Sequence[int]) -> None:
        """`positions` are those of the weights among a call's arguments."""
        self._positions = array("q", positions)
        self._pick = _picker(positions)
        self._last: Weighed | None = None
        self._native = NativeCheck() if len(positions) >= MANY else None

    def look(self, arguments: tuple[Any, ...], before: Weighed | None = None) -> Weighed:
        """How the weights are now.

        Args:
            arguments: Those of a call.
            before: How they were at the last call of the branch: that very object comes back if
                they are as then. Models of one class may share a graph, and take turns.
        """
        for known in (before, self._last):
            if known is not None and self._holds(known, arguments):
                return known
        self._last = weigh(self._pick(arguments))
        return self._last

    def _holds(self, known: Weighed, arguments: tuple[Any, ...]) -> bool:
        unchanged = self._native.get() if self._native is not None and known.plain else None
        if unchanged is None:
            return known.still_holds(self._pick(arguments))
        noted = known.objects, known.versions, known.places
        return unchanged(arguments, self._positions, *noted)


def _picker(positions: Sequence[int]) -> Callable[[Sequence[Any]], tuple[Any, ...]]:
    """Picks the arguments at some positions, as a tuple."""
    if len(positions) > 1:
        return operator.itemgetter(*positions)
    return lambda arguments: tuple(arguments[at] for at in positions)


def _versions(weights: Sequence[Any]) -> array[int]:
    """Some hundred of them at a call: `map` is the quickest way that Python has."""
    try:
        return array("q", map(_VERSION, weights))
    except RuntimeError:
        return array("q", [_read(_VERSION, weight, NO_VERSION) for weight in weights])


def _places(weights: Sequence[Any]) -> array[int]:
    try:
        return array("Q", map(torch.Tensor.data_ptr, weights))
    except RuntimeError:
        return array("Q", [_read(torch.Tensor.data_ptr, weight, NO_PLACE) for weight in weights])


def _read(read: Any, weight: Any, otherwise: int) -> int:
    try:
        return int(read(weight))
    except RuntimeError:
        return otherwise
