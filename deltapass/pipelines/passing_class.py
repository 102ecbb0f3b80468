"""A class for one object, which passes for the object's own wherever that can be told.

Python looks for `__call__` nowhere but in an object's type, so whoever follows the calls of one
object must give it another type, or change the class of all. Here the first: no class is patched.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, Final

CLASS: Final = object.__dict__["__class__"]  # what reads and exchanges any object's class


def passing_class(kind: type[Any], members: dict[str, Any]) -> type[Any]:
    """A subclass that answers for `kind`, with further members.

    For an object `one` that was given it, `one.__class__` is `kind`; `type(one)` equals `kind`,
    finds what is kept under `kind`, and goes by its name. Copies of `one`, what is unpickled from
    it, and what `type(one)(...)` makes are plain objects of `kind`. Only `type(one) is kind` is
    false.
    """
    names = {name: getattr(kind, name) for name in ("__module__", "__qualname__", "__doc__")}
    same = {"__class__": property(lambda _: kind, CLASS.__set__), "__reduce_ex__": _reduction(kind)}
    made: type[Any] = _passing_meta(kind)(kind.__name__, (kind,), {**names, **same, **members})
    return made


def _passing_meta(kind: type[Any]) -> Any:
    """The class of such a class."""
    meta = type(kind)
    members = {
        "_passes_for": property(lambda _: kind),
        "__eq__": lambda _, other: getattr(other, "_passes_for", other) is kind,
        "__hash__": lambda _: hash(kind),
        "__call__": lambda _, *args, **kwargs: kind(*args, **kwargs),
        "__signature__": property(lambda _: inspect.signature(kind)),
        "__instancecheck__": lambda _, given: isinstance(given, kind),
        "__subclasscheck__": lambda _, given: issubclass(given, kind),
    }
    return type(meta.__name__, (meta,), members)


def _reduction(kind: type[Any]) -> Callable[..., Any]:
    """How copy and pickle take such an object apart: as one of `kind`."""
    unbound: Any = kind.__reduce_ex__

    def reduction(self: Any, protocol: Any) -> Any:
        reduced = unbound(self, protocol)
        if not isinstance(reduced, tuple):
            return reduced
        make, arguments, *rest = reduced
        plain = (kind if given is type(self) else given for given in arguments)
        return (make, tuple(plain), *rest)

    return reduction
