"""Keys by which graphs are compared: equal keys, equal code."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, final

from torch import fx

from deltapass.graph.sizes import Size


@final
class Key(tuple[object, ...]):
    """A tuple that works out its hash once: keys are long, and each is looked up many times."""

    _hash: int

    def __hash__(self) -> int:
        if not hasattr(self, "_hash"):
            self._hash = super().__hash__()
        return self._hash

    def __reduce__(self) -> tuple[type[Key], tuple[tuple[object, ...]]]:
        """Without the hash: another process hashes text otherwise."""
        return Key, (tuple(self),)


@final
@dataclass(frozen=True, slots=True, eq=False)
class Compared:
    """A value of any class as a part of a key. Values that cannot be compared equal none."""

    value: Any

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Compared):
            return NotImplemented
        try:
            return self.value is other.value or bool(self.value == other.value)
        except Exception:  # noqa: BLE001 - it may be of any class
            return False

    def __hash__(self) -> int:
        return _hash_of(self.value)


def _hash_of(value: Any) -> int:
    """Equal for equal values, though dictionaries have no hash; of what has none, its type's."""
    if isinstance(value, dict):
        return hash(frozenset((key, _hash_of(each)) for key, each in value.items()))
    if isinstance(value, list | tuple):
        return hash(tuple(map(_hash_of, value)))
    try:
        return hash(value)
    except TypeError:
        return hash(type(value))


def comparable(value: Any, of_node: Callable[[fx.Node], object]) -> object:
    """Arguments of a node as a hashable value, with nodes replaced by what `of_node` gives."""
    if isinstance(value, fx.Node):
        return ("node", of_node(value))
    if isinstance(value, slice):
        return ("slice", comparable((value.start, value.stop, value.step), of_node))
    if isinstance(value, dict):
        return tuple((name, comparable(item, of_node)) for name, item in sorted(value.items()))
    if isinstance(value, tuple | list):
        return (type(value).__name__, *(comparable(item, of_node) for item in value))
    # 1, 1.0 and True are equal to Python but not to a graph; and two dimensions that may vary are
    # not one because they have one size in the example.
    return (type(value).__name__, value.formula if isinstance(value, Size) else repr(value))


def key_of_attribute(root: Any, node: fx.Node) -> object:
    """What a graph holds under an attribute: of a sub-graph its operations, with all literals."""
    held = getattr(root, str(node.target), None)
    if not isinstance(held, fx.GraphModule):
        return node.name
    number = {each: at for at, each in enumerate(held.graph.nodes)}

    def operation(each: fx.Node) -> tuple[object, ...]:
        attribute = each.op == "get_attr"
        # The target itself: two local functions may print alike, as may the literals '1' and 1.
        target = key_of_attribute(held, each) if attribute else each.target
        return each.op, target, comparable((each.args, each.kwargs), number.__getitem__)

    return node.name, tuple(map(operation, held.graph.nodes))
