"""Stage 1, second half: run a graph once on fake tensors and note everything worth knowing.

Takes a graph and its inputs; gives the value of every node (shapes, layouts, numbers), its
multiply-accumulates by torch's own FLOP formulas, and the nodes that write in place into a
tensor that already existed. What was run before on the same values is not run again: of the
blocks of a stack, that leaves the first one or two.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final, final

import torch
from torch import fx
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter, tree_map
from torch.utils.flop_counter import flop_registry, sdpa_flop_count

from deltapass.graph.program import Macs, TensorSpec

aten = torch.ops.aten

# What the paper counts: layers with weights. Attention's own products (bmm, sdpa) are left out.
LAYER_OPERATORS: Final = frozenset(
    {aten.mm, aten.addmm, aten.convolution, aten._convolution, aten.cudnn_convolution}
)
# On a sliced input torch runs a linear layer as a batched product; it stays a layer.
LAYERS: Final = frozenset({torch.nn.functional.linear, aten.linear.default})
PLAIN: Final = (int, float, bool, complex, str, torch.dtype, torch.device, torch.Size)


def to_fake(arguments: Sequence[Any]) -> list[Any]:
    """Fake tensors of static shapes in one mode of their own; numbers stay as they are."""
    mode = FakeTensorMode(allow_non_fake_inputs=True)

    def fake(value: Any) -> Any:
        return mode.from_tensor(value, static_shapes=True) if torch.is_tensor(value) else value

    return [fake(value) for value in arguments]


@final
@dataclass(kw_only=True)
class Seen:
    """What one run on fake tensors showed."""

    values: dict[str, Any] = field(default_factory=dict)
    macs: dict[str, Macs] = field(default_factory=dict)
    writes: list[str] = field(default_factory=list)


@final
class _Observer(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Sees every primitive operation: counts its MACs, and notes which storages it writes."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.macs = Macs()
        self.written: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        self.macs += _macs_of(func, args, kwargs or {}, out)
        self.written |= _written_storages(func, args, kwargs or {})
        return out


@final
class _WrittenError(Exception):
    """A graph writes in place: a value that stands for others of its layout may have changed."""


@final
class _Recorder(fx.Interpreter):
    """Runs a graph and keeps every value, with the costs and writes of each node.

    If `sharing`, values of one layout are one fake tensor, unless they share memory with another
    value. So the blocks after the first ask for what was run before, on the same fake tensors.
    """

    def __init__(self, module: fx.GraphModule, observer: _Observer, *, sharing: bool) -> None:
        super().__init__(module, garbage_collect_values=False)
        self.observer = observer
        self.seen = Seen()
        self._sharing = sharing
        self._owned: set[int] = set()
        self._of_layout: dict[tuple[object, ...], torch.Tensor] = {}
        self._known: dict[tuple[object, ...], tuple[Any, Macs]] = {}
        # Counts the nodes that may change how later ones work, such as entering autocast.
        self._state = 0

    def run_node(self, n: fx.Node) -> Any:
        """Run one node, or remember what it gave before, and note what it did."""
        asked: object = object()
        if self._sharing and n.op.startswith("call"):
            asked = _comparable(self.fetch_args_kwargs_from_env(n))
        key = (self._state, n.op, n.target, asked)
        if key not in self._known:
            self._known[key] = self._run(n)
        value, counted = self._known[key]
        self.seen.values[n.name] = value
        if counted.full:
            whole = Macs(counted.full, counted.full)
            self.seen.macs[n.name] = whole if n.target in LAYERS else counted
        return value

    def _run(self, n: fx.Node) -> tuple[Any, Macs]:
        self.observer.macs, self.observer.written = Macs(), set()
        value = super().run_node(n)
        if self.observer.written & self._owned:
            if self._sharing:
                raise _WrittenError
            self.seen.writes.append(n.name)
        if self._sharing and torch.is_tensor(value):
            value = self._shared(value)
        leaves = list(tree_iter(value))
        if not all(torch.is_tensor(leaf) or isinstance(leaf, PLAIN) for leaf in leaves):
            self._state += 1
        self._owned |= {_storage(leaf) for leaf in leaves if torch.is_tensor(leaf)}
        return value, self.observer.macs

    def _shared(self, value: torch.Tensor) -> torch.Tensor:
        """The first value of this layout, if this one has memory of its own."""
        if _storage(value) in self._owned:
            return value
        layout = (value.shape, value.stride(), value.dtype, value.device, value.storage_offset())
        key = (*layout, value.untyped_storage().nbytes(), value.requires_grad)
        if key not in self._of_layout:
            self._of_layout[key] = value.detach()  # what is written must not be the caller's
        return self._of_layout[key]


def _comparable(value: Any) -> object:
    """Equal for arguments that are the same tensors and equal numbers; else equal to nothing."""
    told: object = object()
    if torch.is_tensor(value):
        told = id(value)
    elif isinstance(value, PLAIN) or value is None:
        told = type(value), value
    elif isinstance(value, slice):
        told = slice, _comparable((value.start, value.stop, value.step))
    elif isinstance(value, tuple | list):
        told = type(value), *map(_comparable, value)
    elif isinstance(value, dict):
        told = tuple((name, _comparable(item)) for name, item in value.items())
    return told


def observe(module: fx.GraphModule, fakes: Sequence[Any]) -> Seen:
    """Run a graph on fake tensors, node by node."""
    try:
        return _record(module, fakes, sharing=True)
    except _WrittenError:
        return _record(module, fakes, sharing=False)


def _record(module: fx.GraphModule, fakes: Sequence[Any], *, sharing: bool) -> Seen:
    observer = _Observer()
    recorder = _Recorder(module, observer, sharing=sharing)
    mode = next((f.fake_mode for f in fakes if isinstance(f, FakeTensor)), FakeTensorMode())
    with mode, observer:
        recorder.run(*fakes)
    return recorder.seen


def _macs_of(func: Any, args: Any, kwargs: Any, out: Any) -> Macs:
    """MACs of one primitive operation by torch's own FLOP formulas (2 FLOPs a MAC)."""
    packet = getattr(func, "_overloadpacket", None)
    if packet in flop_registry:
        flops = flop_registry[packet](*args, **kwargs, out_val=out)
    elif "scaled_dot_product" in str(packet) and "backward" not in str(packet):
        # The CPU kernel has no entry in torch's table; the formula is the same.
        shapes = (tuple(tensor.shape) for tensor in args[:3])
        flops = sdpa_flop_count(*shapes)  # type: ignore[no-untyped-call]
    else:
        return Macs()
    return Macs(flops / 2 if packet in LAYER_OPERATORS else 0.0, flops / 2)


def _written_storages(func: Any, args: Any, kwargs: Any) -> set[int]:
    written: set[int] = set()
    for position, argument in enumerate(func._schema.arguments):
        if argument.alias_info is None or not argument.alias_info.is_write:
            continue
        value = args[position] if position < len(args) else kwargs.get(argument.name)
        written |= {_storage(tensor) for tensor in tree_iter(value) if torch.is_tensor(tensor)}
    return written


def _storage(tensor: torch.Tensor) -> int:
    address: int = tensor.untyped_storage()._cdata
    return address


def spec_of(value: Any) -> Any:
    """A value with every tensor in it replaced by its spec."""

    def one(leaf: Any) -> Any:
        return TensorSpec.of(leaf) if torch.is_tensor(leaf) else leaf

    return tree_map(one, value)
