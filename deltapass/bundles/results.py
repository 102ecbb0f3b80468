"""What a model returns, nested as its callers know it: as plain data, and built again of tensors.

A place in the row of results stands for each tensor: `{"sample": x, "more": (y, z)}` is
`{"dict": {"sample": 0, "more": {"tuple": [1, 2]}}}`.
"""

from __future__ import annotations

import dataclasses
from collections import namedtuple
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, final

from deltapass.errors import ExportError


@final
class Result(dict[str, Any]):
    """Stands for an object of the model's own class: its fields by name, by key and by place."""

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError as error:
            raise AttributeError(f"the model's result has no {name!r}") from error

    def __getitem__(self, key: str | int) -> Any:
        """A field by its name, or by its place."""
        return list(self.values())[key] if isinstance(key, int) else super().__getitem__(key)


def structure_of(value: Any) -> Any:
    """A nested value, whose leaves are places, as plain data.

    Raises:
        ExportError: If it holds what cannot be built again.
    """
    if isinstance(value, int):
        return value
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return {"named": _fields(dict(zip(value._fields, value, strict=True)))}
    if dataclasses.is_dataclass(value):
        named = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
        return {"object": _fields({n: part for n, part in named.items() if part is not None})}
    if isinstance(value, Mapping):
        return {"dict": _fields(value)}
    if isinstance(value, list | tuple):
        return {"list" if isinstance(value, list) else "tuple": [structure_of(v) for v in value]}
    raise ExportError(
        f"the model returns a {type(value).__name__}",
        "It must return tensors, or tuples, lists, dictionaries and dataclasses of them",
    )


def _fields(value: Mapping[Any, Any]) -> dict[str, Any]:
    strange = next((key for key in value if not isinstance(key, str)), None)
    if strange is not None:
        raise ExportError(
            f"the model returns a dictionary with the key {strange!r}", "Use names as keys"
        )
    return {name: structure_of(part) for name, part in value.items()}


def places_of(structure: Any) -> Iterator[int]:
    """The places a structure names, in order."""
    if isinstance(structure, int):
        yield structure
        return
    ((_, parts),) = structure.items()
    for part in parts.values() if isinstance(parts, Mapping) else parts:
        yield from places_of(part)


def built(structure: Any, results: Sequence[Any]) -> Any:
    """The value of a structure, of results in a row."""
    if isinstance(structure, int):
        return results[structure]
    ((kind, parts),) = structure.items()
    if kind in ("tuple", "list"):
        return {"tuple": tuple, "list": list}[kind](built(part, results) for part in parts)
    named = {name: built(part, results) for name, part in parts.items()}
    if kind == "named":
        make: Any = namedtuple  # its fields are known only here
        return make("Result", named)(**named)
    return Result(named) if kind == "object" else named
