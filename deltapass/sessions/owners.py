"""What is kept for each model: found by the object that stands for it, which is held weakly."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from typing import Any, Generic, TypeVar, final

T = TypeVar("T")


@final
class ByOwner(Generic[T]):
    """One value an owner, made on first use and gone with the owner.

    Owners are compared by identity: tensors, which compare by their numbers, may be owners. A
    lookup costs a tenth of one in torch's WeakIdKeyDictionary, which is written in Python.
    """

    def __init__(self, make: Callable[[], T]) -> None:
        self._make = make
        self._kept: dict[int, tuple[weakref.ref[Any], T]] = {}

    def get(self, owner: Any) -> T | None:
        """The owner's value, if it has one."""
        found = self._kept.get(id(owner))
        # An id may be given again, to an object made after its first owner has gone.
        return found[1] if found is not None and found[0]() is owner else None

    def of(self, owner: Any) -> T:
        """The owner's value; a new one at first."""
        found = self.get(owner)
        if found is None:
            found = self._make()
            key, mine = id(owner), weakref.ref(self)  # a cycle would hold the values too long

            # A default argument: as Python ends, the module's names go before the last owners.
            def forget(gone: weakref.ref[Any], forget: Callable[..., None] = _forget) -> None:
                forget(mine(), key, gone)

            self._kept[key] = weakref.ref(owner, forget), found
        return found

    def values(self) -> Iterator[T]:
        """The values of all owners."""
        yield from [value for _, value in list(self._kept.values())]

    def forget(self, key: int, gone: weakref.ref[Any]) -> None:
        """Let go of the value of an owner that is gone, unless its id has a new owner."""
        if key in self._kept and self._kept[key][0] is gone:
            del self._kept[key]


def _forget(owners: ByOwner[Any] | None, key: int, gone: weakref.ref[Any]) -> None:
    if owners is not None:
        owners.forget(key, gone)
