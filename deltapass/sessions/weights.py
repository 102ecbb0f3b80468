"""Have the weights of a model changed since a branch's last call?

A weight is surely the same if it is the same object, in the same memory, and counts no change.
Addresses alone do not tell: what is made after something was freed may lie where that lay. What
lies elsewhere was moved, as offloading moves it (of a buffer it makes another object), or was
exchanged; a sample of its numbers tells which.

Of a weight that holds other tensors, such as a quantised one, these are looked at, for it has no
memory of its own; and its version, for what is done to the whole is not counted by its parts. It is
not held weakly: torch would not move it.
"""

from __future__ import annotations

import operator
import weakref
from array import array
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import compress
from types import MappingProxyType
from typing import Any, Final, final

import torch

from deltapass.sessions.changes import BITS
from deltapass.sessions.native import NativeCheck

_VERSION: Final = operator.attrgetter("_version")
NO_VERSION: Final = -1  # of an inference tensor
NO_PLACE: Final = 2**64 - 1  # of a wrapper, which has no memory; some devices use all other bits
PLAIN: Final = frozenset({torch.Tensor, torch.nn.Parameter, torch.nn.Buffer})
SAMPLED: Final = 256  # numbers of a weight, spread over all of it, that tell a move from a change
Wholes = tuple[tuple[int, int], ...]
NOTHING: Final[Mapping[int, Sequence[str]]] = MappingProxyType({})
MANY: Final = 128  # weights from which on it pays to build the compiled check


@final
@dataclass(frozen=True, slots=True)
class Weighed:
    """Weights as they were: the objects (weakly held), their versions, their places in memory.

    `plain` says that none is of a subclass, which may answer for another tensor inside it.
    `sample` holds SAMPLED numbers of each, on their device; None where they cannot be taken.
    `wholes` has the identity and the version of every weight that holds others, of which only the
    plain tensors within are among the rest.
    """

    objects: list[weakref.ref[Any]]
    versions: array[int]
    places: array[int]
    plain: bool
    sample: torch.Tensor | None = None
    wholes: Wholes = ()

    def still_holds(self, weights: Sequence[Any]) -> bool:
        """Whether these are the same objects, and nothing was changed or moved since."""
        return (
            len(weights) == len(self.objects)
            and all(map(operator.is_, map(operator.call, self.objects), weights))
            and self.versions == _versions(weights)
            and self.places == _places(weights)
        )


def weigh(weights: Sequence[Any], wholes: Wholes = ()) -> Weighed:
    """Note how the weights are.

    Not seen: `weight.data.mul_()`, and in-place changes of inference tensors; neither is counted.
    """
    plain = PLAIN.issuperset(map(type, weights))
    objects, sample = list(map(weakref.ref, weights)), _sampled(weights) if plain else None
    return Weighed(objects, _versions(weights), _places(weights), plain, sample, wholes)


def same_weights(one: Weighed, other: Weighed) -> bool:
    """Whether nothing was changed or replaced in between; all may have moved, with their values.

    Of what moved a sample is compared, which waits for the device.
    """
    if one is other:
        return True
    if len(one.objects) != len(other.objects) or _changed(one.wholes, other.wholes):
        return False
    # A weak reference is made once for each object, so the same object has the same reference.
    kept = list(map(operator.is_, one.objects, other.objects))
    if not all(map(operator.eq, *(compress(noted.versions, kept) for noted in (one, other)))):
        return False
    return (all(kept) and one.places == other.places) or _alike(one.sample, other.sample)


def _changed(before: Wholes, now: Wholes) -> bool:
    same = len(before) == len(now)
    pairs = zip(before, now, strict=False)
    return not same or any(one[0] == other[0] and one != other for one, other in pairs)


def _alike(one: torch.Tensor | None, other: torch.Tensor | None) -> bool:
    return one is not None and other is not None and torch.equal(one.cpu(), other.cpu())


def _sampled(weights: Sequence[torch.Tensor]) -> torch.Tensor | None:
    """The bits of some numbers of every weight, in one tensor; nothing waits for it.

    Taken whenever weights are looked at anew, for after a move what was there before is gone.
    """
    try:
        return torch.cat(list(map(_some, weights))) if weights else None
    except (RuntimeError, KeyError):  # several devices, or numbers of no usual kind
        return None


def _some(weight: torch.Tensor) -> torch.Tensor:
    plain = weight.detach()
    flat = (torch.view_as_real(plain) if plain.is_complex() else plain).reshape(-1)
    return flat[:: max(1, flat.numel() // SAMPLED)].view(BITS[flat.element_size()])


@final
class WeightWatch:
    """Looks at the weights of one compiled graph at every call.

    While nothing changes, `look` gives the same object, so that a branch knows by its identity
    that its deltas belong to these weights. A few microseconds for some hundred weights with the
    check compiled from unchanged.cpp; about ten times as much while, or where, there is none.
    """

    def __init__(
        self, positions: Sequence[int], within: Mapping[int, Sequence[str]] = NOTHING
    ) -> None:
        """Watch the weights at some positions among a call's arguments.

        Args:
            positions: Those of the weights.
            within: Position -> dotted names of the plain tensors in a weight that holds others.
        """
        self._parts = _parts_picker(positions, within) if within else None
        self._wholes = _picker(tuple(within))
        count = len(positions) + sum(len(paths) - 1 for paths in within.values())
        self._positions = array("q", range(count) if within else positions)
        self._pick = _picker(self._positions)
        self._last: Weighed | None = None
        self._native = NativeCheck() if count >= MANY else None

    def look(self, arguments: tuple[Any, ...], before: Weighed | None = None) -> Weighed:
        """How the weights are now.

        Args:
            arguments: Those of a call.
            before: How they were at the last call of the branch: that very object comes back if
                they are as then. Models of one class may share a graph, and take turns.
        """
        wholes: Wholes = ()
        if self._parts is not None:
            wholes = _look_at(self._wholes(arguments))
            arguments = self._parts(arguments)
        for known in (before, self._last):
            if known is not None and known.wholes == wholes and self._holds(known, arguments):
                return known
        self._last = weigh(self._pick(arguments), wholes)
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


def _parts_picker(
    positions: Sequence[int], within: Mapping[int, Sequence[str]]
) -> Callable[[Sequence[Any]], tuple[Any, ...]]:
    """Picks the plain weights, and what the others hold."""
    plain = _picker([at for at in positions if at not in within])
    # One getter a weight would read its parts faster, but gives no tuple where it has one part.
    parts = [(at, operator.attrgetter(path)) for at, paths in within.items() for path in paths]
    return lambda arguments: plain(arguments) + tuple([read(arguments[at]) for at, read in parts])


def _look_at(weights: Sequence[Any]) -> Wholes:
    with torch._C.DisableTorchFunctionSubclass():  # which would run Python for every weight
        return tuple(zip(map(id, weights), _versions(weights), strict=True))


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
