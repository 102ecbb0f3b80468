"""Going backwards from a part of a value to the parts of others that it came from.

A window is the part that matters: (dimension, start, stop), for some of the dimensions. The image's
part of a joined stream leads back, through slices and concatenations, to the image alone.

    y = cat([text, image], 1);  y[:, 5:]   ->   image
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any, Final

import torch
from torch import fx

from deltapass.graph.program import Captured, TensorSpec

Window = frozenset[tuple[int, int, int]]
ANYWHERE: Final[Window] = frozenset()
JOINING: Final = frozenset({"cat", "concat", "concatenate"})
SPLITTING: Final = frozenset({"split", "chunk", "split_with_sizes", "tensor_split", "unbind"})
# Operators that keep dimensions apart: what lies within a window comes from within it. Weights are
# multiplied on the last dimension, and views keep those before or after what they change.
KEEPING: Final = frozenset(
    {
        "add", "iadd", "sub", "isub", "mul", "imul", "div", "truediv", "itruediv", "addcmul",
        "lerp", "where", "maximum", "minimum", "neg", "silu", "gelu", "tanh", "sigmoid", "relu",
        "clamp", "clip", "nan_to_num", "to", "float", "half", "bfloat16", "double", "type",
        "type_as", "_to_copy", "clone", "contiguous", "alias", "dropout", "linear", "layer_norm",
        "native_layer_norm", "rms_norm", "_fused_rms_norm", "rsqrt", "sqrt", "pow",
        "view", "reshape", "_unsafe_view", "view_as", "reshape_as", "flatten", "unflatten",
        "squeeze", "unsqueeze", "expand", "expand_as", "identity",
    }
)  # fmt: skip
SWAPPING: Final = frozenset({"transpose", "swapaxes", "swapdims"})
Part = tuple[fx.Node, Window]


def name_of(target: Any) -> str:
    """The plain name of an operator: `add` for operator.add, "add_" and aten.add.Tensor."""
    if isinstance(target, torch._ops.OpOverload):
        target = target._schema.name.split("::")[-1]
    named = target if isinstance(target, str) else getattr(target, "__name__", "")
    return named if named == "_to_copy" else named.rstrip("_")


def parts_within(captured: Captured, node: fx.Node, window: Window) -> list[Part] | None:
    """Of a concatenation, or a value of which a slice was replaced: the parts in the window."""
    name = name_of(node.target)
    if name in JOINING:
        return _joined(captured, node, window)
    if name == "slice_scatter":
        return _scattered(captured, node, window)
    return None


def chosen_part(captured: Captured, node: fx.Node, window: Window) -> Part | None:
    """Of a slice, or one of the pieces of a split: the value that was cut, and where."""
    source = node.args[0] if node.args else None
    if not isinstance(source, fx.Node):
        return None
    name = name_of(node.target)
    spec = captured.spec(source)
    if name == "getitem":
        if spec is None:
            return _piece(captured, source, node.args[1], window)
        return _indexed(source, spec, node.args[1], window)
    cut = _cut(node, name, spec) if spec is not None else None
    if cut is None:
        return None
    dim, start, stop, removed = cut
    outer = _without(window, dim, removed=removed)
    begin, end = _range(window, dim) or (0, stop - start) if not removed else (0, 1)
    return source, outer | {(dim, start + begin, start + end)}


def before(captured: Captured, node: fx.Node, value: fx.Node, window: Window) -> Window:
    """The window of an operand from which what lies in a value's window was computed."""
    if not window:
        return window
    here, there = captured.spec(node), captured.spec(value)
    name = name_of(node.target)
    if here is None or there is None:
        return ANYWHERE
    order = _order(node, name, len(here.shape))
    if order is not None:
        return frozenset((order[dim], start, stop) for dim, start, stop in window)
    if name not in KEEPING:
        return ANYWHERE
    moved = ((_same_dim(here, there, dim), start, stop) for dim, start, stop in window)
    last = len(here.shape) - 1
    mixed = name == "linear"
    return frozenset(
        (dim, start, stop)
        for dim, start, stop in moved
        if dim is not None and not (mixed and dim == last)
    )


def _same_dim(here: TensorSpec, there: TensorSpec, dim: int) -> int | None:
    """Where a dimension was before a view: those up to it, or from it on, are as they were."""
    if here.shape[: dim + 1] == there.shape[: dim + 1]:
        return dim
    shift = len(there.shape) - len(here.shape)
    if dim + shift >= 0 and here.shape[dim:] == there.shape[dim + shift :]:
        return dim + shift
    return None


def _order(node: fx.Node, name: str, rank: int) -> list[int] | None:
    """Of a permutation: for every dimension the one it was before."""
    given: Any = node.args[1:]
    order = list(range(rank))
    if name in SWAPPING and len(given) == 2:
        one, two = (dim % rank for dim in given)
        order[one], order[two] = order[two], order[one]
        return order
    if name == "permute":
        dims: Any = given[0] if given and isinstance(given[0], tuple | list) else given
        return [dim % rank for dim in dims] if len(dims) == rank else None
    return None


def _joined(captured: Captured, node: fx.Node, window: Window) -> list[Part] | None:
    parts: Any = node.args[0] if node.args else node.kwargs.get("tensors", ())
    dim: Any = node.args[1] if len(node.args) > 1 else node.kwargs.get("dim", 0)
    specs = [captured.spec(part) for part in parts]
    whole = captured.spec(node)
    if whole is None or not isinstance(dim, int) or any(spec is None for spec in specs):
        return None
    dim %= len(whole.shape)
    least, most = _range(window, dim) or (0, whole.shape[dim])
    outer = _without(window, dim)
    sizes = [spec.shape[dim] for spec in specs if spec]
    found = []
    for part, size, stop in zip(parts, sizes, itertools.accumulate(sizes), strict=True):
        begin, end = max(least, stop - size), min(most, stop)
        if begin < end:
            inner = (dim, begin - (stop - size), end - (stop - size))
            found.append((part, outer if inner == (dim, 0, size) else outer | {inner}))
    return found


def _scattered(captured: Captured, node: fx.Node, window: Window) -> list[Part] | None:
    whole: Any = node.args[0]
    part: Any = node.args[1]
    spec, within = captured.spec(node), captured.spec(part)
    given: Any = (*node.args[2:], *(None,) * 4)
    dim = given[0] or 0
    if spec is None or within is None or given[3] not in (None, 1):
        return [(whole, ANYWHERE), (part, ANYWHERE)]
    dim %= len(spec.shape)
    start, stop, _ = slice(given[1], given[2]).indices(spec.shape[dim])
    least, most = _range(window, dim) or (0, spec.shape[dim])
    outer = _without(window, dim)
    found = []
    if max(least, start) < min(most, stop):
        inner = (dim, max(least, start) - start, min(most, stop) - start)
        found.append((part, outer | {inner}))
    if least < start or most > stop:
        found.append((whole, window))
    return found


def _piece(captured: Captured, split: fx.Node, index: Any, window: Window) -> Part | None:
    """What `split(x, ...)[index]` was cut from."""
    source = split.args[0] if split.args else None
    name = name_of(split.target)
    if name not in SPLITTING or not isinstance(source, fx.Node) or not isinstance(index, int):
        return None
    spec, pieces = captured.spec(source), captured.values.get(split.name, ())
    dim = _split_dim(split, name)
    if spec is None or dim is None or not all(isinstance(p, TensorSpec) for p in pieces):
        return None
    dim %= len(spec.shape)
    index %= len(pieces)
    if name == "unbind":
        return source, _without(window, dim, removed=True) | {(dim, index, index + 1)}
    start = sum(piece.shape[dim] for piece in pieces[:index])
    begin, end = _range(window, dim) or (0, pieces[index].shape[dim])
    return source, _without(window, dim) | {(dim, start + begin, start + end)}


def _split_dim(split: fx.Node, name: str) -> int | None:
    place = 1 if name == "unbind" else 2
    dim: Any = split.args[place] if len(split.args) > place else split.kwargs.get("dim", 0)
    return dim if isinstance(dim, int) else None


def _cut(node: fx.Node, name: str, spec: TensorSpec) -> tuple[int, int, int, bool] | None:
    """(dimension, start, stop, whether the dimension goes) of an operator that cuts one."""
    given: Any = (*node.args[1:], *(None,) * 4)
    if given[0] is not None and not isinstance(given[0], int):
        return None
    dim = (given[0] or 0) % max(1, len(spec.shape))
    if name == "select" and isinstance(given[1], int):
        at = given[1] % spec.shape[dim]
        return dim, at, at + 1, True
    if name == "narrow" and isinstance(given[1], int):
        return dim, given[1], given[1] + given[2], False
    if name == "slice" and given[3] in (None, 1):
        start, stop, _ = slice(given[1], given[2]).indices(spec.shape[dim])
        return dim, start, stop, False
    return None


def _indexed(source: fx.Node, spec: TensorSpec, index: Any, window: Window) -> Part | None:
    """What `x[index]` was cut from, for an index of slices, numbers, None and an ellipsis."""
    given: Sequence[Any] = index if isinstance(index, tuple | list) else (index,)
    if not all(one is None or one is ... or isinstance(one, slice | int) for one in given):
        return None
    taken = sum(isinstance(one, slice | int) and not isinstance(one, bool) for one in given)
    fill = (slice(None),) * (len(spec.shape) - taken)
    at = next((n for n, one in enumerate(given) if one is ...), len(given))
    full = (*given[:at], *fill, *given[at + 1 :])
    found, dim, out = set(), 0, 0
    for one in full:
        if one is None:
            out += 1
            continue
        size = spec.shape[dim]
        if isinstance(one, int):
            found.add((dim, one % size, one % size + 1))
            dim += 1
            continue
        start, stop, step = one.indices(size)
        begin, end = _range(window, out) or (0, max(0, stop - start))
        if step == 1 and (start + begin, start + end) != (0, size):
            found.add((dim, start + begin, start + end))
        dim, out = dim + 1, out + 1
    return source, frozenset(found)


def _range(window: Window, dim: int) -> tuple[int, int] | None:
    return next(((start, stop) for at, start, stop in window if at == dim), None)


def _without(window: Window, dim: int, *, removed: bool = False) -> Window:
    """The window in the other dimensions, as they were where this one was still there."""
    if removed:
        return frozenset((at + (at >= dim), start, stop) for at, start, stop in window)
    return frozenset(one for one in window if one[0] != dim)
