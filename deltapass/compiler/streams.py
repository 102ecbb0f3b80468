"""Stage 2, first half: which live-in does each live-out of a span continue?

Takes a captured graph and a range of node positions; gives (live-in, live-out) pairs, one for
every value that crosses the span's end. Pairs come from data flow: a residual stream reaches
the span's end through additions alone. Shape decides only where it leaves a single choice.
Source: Delta-Cache, Eq. 3, needs F_{1:I}(x) and F_{1:I+Nc}(x) of the same stream.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final, final

import torch
from torch import fx

from deltapass.compiler.addends import (
    ADDITIONS,
    CARRIERS,
    SPLITS,
    Addends,
    added_in_place,
    addends_of,
    carried,
    read_before,
)
from deltapass.errors import StreamError
from deltapass.graph.program import Captured, TensorSpec
from deltapass.graph.stack import Block

aten = torch.ops.aten

CONCATENATIONS: Final = frozenset({torch.cat, torch.concat, torch.concatenate, aten.cat.default})
SLICE_ARGUMENTS: Final = 4  # aten.slice.Tensor(input, dim, start, end)


@final
@dataclass(frozen=True, kw_only=True, slots=True)
class Stream:
    """One residual stream over a span: the value that enters and the value that leaves.

    `spec` is that of the live-out. Into a feature nothing enters: its `live_in` is empty.
    """

    live_in: str
    live_out: str
    spec: TensorSpec


@final
@dataclass(frozen=True, slots=True)
class _Joined:
    """Streams concatenated along one dimension, with the size of each."""

    dim: int
    parts: tuple[fx.Node | None, ...]
    sizes: tuple[int, ...]


@final
@dataclass(frozen=True, slots=True)
class _Several:
    """A sum of streams of which it cannot be told which one goes on."""


_SEVERAL: Final = _Several()
Origin = fx.Node | _Joined | _Several | None  # None: computed anew within the span


def pair_streams(
    captured: Captured,
    blocks: Sequence[Block],
    span: str,
    *,
    by_shape: bool = True,
    addends: Addends | None = None,
) -> tuple[Stream, ...]:
    """Pair every live-out of a run of consecutive blocks with its live-in.

    Args:
        captured: The graph.
        blocks: The blocks of the span, in order.
        span: The span's name, for messages.
        by_shape: Whether shape may decide where data flow does not.
        addends: Those of the graph, for who asks about many spans of it.

    Returns:
        One stream a live-out, in program order; live-in and live-out agree in shape. Their floating
        types may differ: under autocast a stream changes its type in the first block.

    Raises:
        StreamError: If a live-out continues no live-in, or more than one could be meant.
    """
    within = captured.nodes[blocks[0].first : blocks[-1].stop]
    inside = set(within)
    outs = [node for node in within if any(user not in inside for user in node.users)]
    tracer = _Tracer(captured, inside, addends or Addends(captured))
    origins = ((out, tracer.origin(out)) for out in outs)
    found = {
        out: origin
        for out, origin in origins
        if isinstance(origin, fx.Node) and _alike(captured, origin, out, any_float=True)
    }
    unpaired = [out for out in outs if out not in found]
    if unpaired:
        taken = set(found.values())
        entering = _entering(captured, captured.nodes[: blocks[0].stop], inside)
        spare = [node for node in entering if node not in taken and by_shape]
        found.update(_by_shape(captured, unpaired, spare, span))
    pairs = ((found[out], out, captured.spec(out)) for out in outs)
    return tuple(
        Stream(live_in=entered.name, live_out=out.name, spec=spec)
        for entered, out, spec in pairs
        if spec
    )


def alike(one: TensorSpec, other: TensorSpec, *, any_float: bool = False) -> bool:
    """Whether two tensors agree in shape, device and type, of which any two floats may do."""
    floats = one.dtype.is_floating_point and other.dtype.is_floating_point
    one_type = one.dtype == other.dtype or (any_float and floats)
    return one_type and (one.shape, one.device) == (other.shape, other.device)


def _alike(captured: Captured, one: fx.Node, other: fx.Node, *, any_float: bool = False) -> bool:
    """Whether both are single tensors that are alike."""
    first, second = captured.spec(one), captured.spec(other)
    return first is not None and second is not None and alike(first, second, any_float=any_float)


def _entering(
    captured: Captured, until_first: Sequence[fx.Node], inside: set[fx.Node]
) -> list[fx.Node]:
    """Streams that enter the span: made before it, read by its first block and nowhere later.

    Conditioning is read by every block, a long skip by a later one; neither is a stream.
    """
    first = {node for node in until_first if node in inside}
    before = [node for node in until_first if node not in inside and node.op != "placeholder"]
    return [
        node
        for node in before
        if captured.spec(node) and node.users and all(user in first for user in node.users)
    ]


def _by_shape(
    captured: Captured, outs: Sequence[fx.Node], spare: Sequence[fx.Node], span: str
) -> dict[fx.Node, fx.Node]:
    """Pair by shape and dtype, where both sides leave exactly one choice."""
    pairs: dict[fx.Node, fx.Node] = {}
    for out in outs:
        choices = [node for node in spare if _alike(captured, node, out)]
        rivals = [other for other in outs if _alike(captured, other, out)]
        if not choices:
            raise StreamError(span, out.name, "continues no value that enters it")
        if len(choices) > 1 or len(rivals) > 1:
            names = ", ".join(node.name for node in choices)
            raise StreamError(span, out.name, f"could continue any of: {names}")
        pairs[out] = choices[0]
    return pairs


@final
class _Tracer:
    """Follows values backwards through additions to where they entered the span."""

    def __init__(self, captured: Captured, inside: set[fx.Node], addends: Addends) -> None:
        self.captured, self.inside, self.addends = captured, inside, addends
        self.known: dict[fx.Node, Origin] = {}

    def origin(self, node: fx.Node) -> Origin:
        """The value (or concatenation of values) from outside that `node` is a sum onto."""
        if node not in self.inside:
            return node
        if node not in self.known:
            self.known[node] = None
            rule = self._rule(node)
            self.known[node] = rule(node) if rule else None
        return self.known[node]

    def _rule(self, node: fx.Node) -> Callable[[fx.Node], Origin] | None:
        if node.target in ADDITIONS:
            return self._through_addition
        if node.target in CONCATENATIONS:
            return self._through_concatenation
        if node.target is operator.getitem or node.target is aten.slice.Tensor:
            return self._through_slice
        if node.target is aten.slice_scatter.default:
            return self._through_scatter
        return self._through_carrier if node.target in CARRIERS else None

    def _through_addition(self, node: fx.Node) -> Origin:
        leading = [t for t in addends_of(self.captured, node) if self.origin(t) is not None]
        if not leading:
            return None
        if len(leading) == 1 and read_before(leading[0], node):
            return self.origin(leading[0])
        # Two lead out of the span, or one that may be a side input: the whole graph can tell.
        chosen = self.addends.continued(node)
        if chosen is not None:
            return self.origin(chosen)
        return self.origin(leading[0]) if len(leading) == 1 else _SEVERAL

    def _through_carrier(self, node: fx.Node) -> Origin:
        source = carried(self.captured, node)
        return self.origin(source) if source is not None else None

    def _through_scatter(self, node: fx.Node) -> Origin:
        whole = added_in_place(node)
        return self.origin(whole) if whole is not None else None

    def _through_concatenation(self, node: fx.Node) -> Origin:
        parts: Any = node.args[0] if node.args else node.kwargs.get("tensors", ())
        dim: Any = node.args[1] if len(node.args) > 1 else node.kwargs.get("dim", 0)
        specs = [self.captured.spec(part) for part in parts]
        whole = self.captured.spec(node)
        if whole is None or not specs or any(spec is None for spec in specs):
            return None
        dim %= len(whole.shape)
        origins = [self.origin(part) for part in parts]
        single = tuple(origin if isinstance(origin, fx.Node) else None for origin in origins)
        return _Joined(dim, single, tuple(spec.shape[dim] for spec in specs if spec))

    def _through_slice(self, node: fx.Node) -> Origin:
        source: Any = node.args[0]
        if source.target in SPLITS and isinstance(node.args[1], int):
            return self._split_part(source, node.args[1])
        joined = self.origin(source)
        cut = _cut(node, self.captured.spec(source)) if isinstance(joined, _Joined) else None
        return _part(joined, *cut) if cut and isinstance(joined, _Joined) else None

    def _split_part(self, split: fx.Node, index: int) -> Origin:
        whole: Any = split.args[0]
        joined = self.origin(whole)
        pieces = self.captured.values.get(split.name)
        if not isinstance(joined, _Joined) or not isinstance(pieces, tuple | list):
            return None
        start = sum(piece.shape[joined.dim] for piece in pieces[:index])
        return _part(joined, joined.dim, start, start + pieces[index].shape[joined.dim])


def _part(joined: _Joined, dim: int, start: int, stop: int) -> Origin:
    """The one part of a concatenation that a slice takes out whole."""
    begin = 0
    for part, size in zip(joined.parts, joined.sizes, strict=True):
        if dim == joined.dim and (start, stop) == (begin, begin + size):
            return part
        begin += size
    return None


def _cut(node: fx.Node, spec: TensorSpec | None) -> tuple[int, int, int] | None:
    """(dimension, start, stop) of a slice that cuts one dimension only."""
    if spec is None:
        return None
    if node.target is aten.slice.Tensor:
        if len(node.args) < SLICE_ARGUMENTS:
            return None
        bounds: Any = node.args[1:SLICE_ARGUMENTS]
        slices = {bounds[0]: slice(*bounds[1:])}
    else:
        given: Any = node.args[1]
        index = given if isinstance(given, tuple) else (given,)
        index = index[:-1] if index[-1:] == (Ellipsis,) else index
        if not all(isinstance(part, slice) for part in index):
            return None
        slices = {dim: part for dim, part in enumerate(index) if part != slice(None)}
    if len(slices) != 1:
        return None
    ((dim, part),) = slices.items()
    start, stop, step = part.indices(spec.shape[dim])
    return (dim, start, stop) if step == 1 else None
