"""Stage 1, second half: run a graph once on fake tensors and note everything worth knowing.

Takes a graph and its inputs; gives the value of every node (shapes, layouts, numbers), its
multiply-accumulates by torch's own FLOP formulas, and the nodes that write in place into a
tensor that already existed. What was run before on the same values is not run again: of the
blocks of a stack, that leaves the first one or two.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, final

import torch
from torch import fx
from torch._C._functorch import is_functorch_wrapped_tensor
from torch._ops import HigherOrderOperator
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensor,
    FakeTensorMode,
    UnsupportedOperatorException,
)
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter, tree_map

from deltapass.compiler.counted import LAYERS, macs_of, macs_of_layer
from deltapass.compiler.float_inputs import known_floats
from deltapass.compiler.torch_state import Leaving
from deltapass.errors import UnsupportedOperatorError
from deltapass.graph.keys import comparable
from deltapass.graph.program import Macs, TensorSpec
from deltapass.graph.wrapped import holds_tensors, plain_tensors

# What fake tensors say to operators that have no form without data.
UNKNOWN_TO_FAKES: Final = (
    NotImplementedError,
    DataDependentOutputException,
    DynamicOutputShapeException,
    UnsupportedOperatorException,
)
# Operators that give nothing and change nothing but what they are given: checks, writes, a note
# that torch takes of a module that is made in forward.
SILENT: Final = (
    "_assert", "_check", "sym_constrain", "setitem", "__setitem__", "copy_", "_log_api_usage_once",
)  # fmt: skip
PLAIN: Final = (int, float, bool, complex, str, torch.dtype, torch.device, torch.Size)


@final
@dataclass(kw_only=True)
class FakeRun:
    """What one run on fake tensors showed: of every node its value, its costs, its writes."""

    values: dict[str, Any] = field(default_factory=dict)
    macs: dict[str, Macs] = field(default_factory=dict)
    writes: list[str] = field(default_factory=list)

    @property
    def distinct(self) -> dict[int, Any]:
        """The values by identity: many nodes give one and the same."""
        return {id(value): value for value in self.values.values()}


def fake_run(module: fx.GraphModule, arguments: Sequence[Any]) -> FakeRun:
    """Run a graph on fake tensors, node by node.

    Args:
        module: The graph.
        arguments: Real tensors and plain numbers.

    Raises:
        UnsupportedOperatorError: If an operator does not run on tensors without data.
        ModeError: If the graph enters a mode, in which operators work otherwise.
    """
    try:
        try:
            return _record(module, arguments, sharing=True)
        except _WrittenError:
            return _record(module, arguments, sharing=False)
    except UNKNOWN_TO_FAKES as error:
        raise UnsupportedOperatorError(str(error).split("\n")[0]) from error


def to_fake(arguments: Sequence[Any], *, sharing: bool = False) -> list[Any]:
    """Fake tensors of static shapes in one mode of their own; numbers stay as they are.

    Args:
        arguments: Real tensors and plain numbers.
        sharing: Whether arguments of one layout may be one fake tensor.
    """
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    known: dict[object, Any] = {}

    def fake(value: Any) -> Any:
        if not torch.is_tensor(value):
            return value
        layout = _alike(value) if sharing else id(value)
        if layout not in known:
            known[layout] = mode.from_tensor(value, static_shapes=True)
        return known[layout]

    return list(map(fake, arguments))


def _alike(value: torch.Tensor) -> object:
    """Equal for arguments that may be one fake tensor."""
    if holds_tensors(value):
        return value.requires_grad, TensorSpec.of(value)
    plain = type(value) in (torch.Tensor, torch.nn.Parameter) and _lies_plainly(value)
    return (type(value), *_layout(value)) if plain else id(value)


def spec_of(value: Any) -> Any:
    """A value with every tensor in it replaced by its spec."""

    def one(leaf: Any) -> Any:
        return TensorSpec.of(leaf) if torch.is_tensor(leaf) else leaf

    return tree_map(one, value)


def _record(module: fx.GraphModule, arguments: Sequence[Any], *, sharing: bool) -> FakeRun:
    fakes = to_fake(arguments, sharing=sharing)
    operators = OperatorCosts()
    recorder = _Recorder(module, operators, known_floats(module, arguments), sharing=sharing)
    mode = next((f.fake_mode for f in fakes if isinstance(f, FakeTensor)), FakeTensorMode())
    with mode, operators:
        recorder.run(*fakes)
    return recorder.noted


@final
class OperatorCosts(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Sees every primitive operation: counts its MACs, and notes which storages it writes.

    `macs` may be read and set anew at any time.
    """

    supports_higher_order_operators = True

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.macs = Macs()
        self.written: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        self.macs += macs_of(func, args, kwargs or {}, out)
        self.written |= _written_storages(func, args, kwargs or {})
        return out


@final
class ModeError(Exception):
    """A graph enters a mode on its way: autocast, a level of vmap, another gradient mode."""


@final
class _WrittenError(Exception):
    """A graph writes in place: a value that stands for others of its layout may have changed."""


@final
class _Recorder(Leaving):
    """Runs a graph and keeps every value, with the costs and writes of each node.

    If `sharing`, values of one layout are one fake tensor, unless they share memory with another
    value. So the blocks after the first ask for what was run before, on the same fake tensors.
    """

    def __init__(
        self,
        module: fx.GraphModule,
        operators: OperatorCosts,
        floats: Mapping[fx.Node, float],
        *,
        sharing: bool,
    ) -> None:
        super().__init__(module)
        self.operators = operators
        self.noted = FakeRun()
        self._floats = floats
        self._sharing = sharing
        self._owned: set[int] = set()
        self._of_layout: dict[tuple[object, ...], torch.Tensor] = {}
        self._known: dict[tuple[object, ...], tuple[Any, Macs]] = {}

    def run_node(self, n: fx.Node) -> Any:
        """Run one node, or remember what it gave before, and note what it did."""
        asked: object = object()  # equal to nothing
        if self._sharing and n.op.startswith("call"):
            asked = comparable((n.args, n.kwargs), self._told)
        key = (n.op, n.target, asked)
        if key not in self._known:
            self._known[key] = self._run(n)
        value, counted = self._known[key]
        self.noted.values[n.name] = value
        if counted.full:
            whole = Macs(counted.full, counted.full)
            self.noted.macs[n.name] = whole if n.target in LAYERS else counted
        return value

    def _run(self, n: fx.Node) -> tuple[Any, Macs]:
        if n in self._floats:
            return self._floats[n], Macs()
        self.operators.macs, self.operators.written = Macs(), set()
        value = super().run_node(n)
        if n.target in LAYERS and any(map(holds_tensors, self._given(n))):
            self.operators.macs = macs_of_layer(value, *self._given(n))
        if self.operators.written & self._owned:
            if self._sharing:
                raise _WrittenError
            self.noted.writes.append(n.name)
        if self._sharing and torch.is_tensor(value):
            value = self._shared(value)
        leaves = list(tree_iter(value))
        if n.op.startswith("call") and _changes_mode(n, leaves):
            raise ModeError
        self._owned |= _storages(leaves)
        return value, self.operators.macs

    def _given(self, node: fx.Node) -> list[Any]:
        return [self.env[value] for value in node.all_input_nodes]

    def _told(self, node: fx.Node) -> object:
        """Equal for equal numbers, and for values that are one and the same."""
        value = self.env[node]
        return (type(value), value) if isinstance(value, PLAIN) else id(value)

    def _shared(self, value: torch.Tensor) -> torch.Tensor:
        """The first value of this layout, if this one has memory of its own and no known data."""
        if not _is_shareable(value) or _storages([value]) & self._owned:
            return value
        layout = _layout(value)
        if layout not in self._of_layout:
            self._of_layout[layout] = value.detach()  # what is written must not be the caller's
        return self._of_layout[layout]


def _changes_mode(node: fx.Node, leaves: Sequence[Any]) -> bool:
    """Whether a node gives neither tensors nor numbers, or tensors of a transform's level."""
    if any(map(is_functorch_wrapped_tensor, filter(torch.is_tensor, leaves))):
        return True
    told = all(torch.is_tensor(leaf) or isinstance(leaf, PLAIN) for leaf in leaves)
    return not told and not _name(node.target).startswith(SILENT)


def _name(target: Any) -> str:
    """`aten._assert_scalar.default`, `torch._check` -> `_assert_scalar...`, `_check`."""
    name = target if isinstance(target, str) else getattr(target, "__name__", "")
    return str(name)


def _written_storages(func: Any, args: Any, kwargs: Any) -> set[int]:
    written: set[int] = set()
    if isinstance(func, HigherOrderOperator):
        return written  # torch lets their sub-graphs write nothing
    for position, argument in enumerate(func._schema.arguments):
        if argument.alias_info is None or not argument.alias_info.is_write:
            continue
        value = args[position] if position < len(args) else kwargs.get(argument.name)
        written |= _storages(tree_iter(value))
    return written


def _storages(values: Iterable[Any]) -> set[int]:
    """Where the tensors among some values lie."""
    tensors = (
        inner for value in values if torch.is_tensor(value) for inner in plain_tensors(value)
    )
    return {tensor.untyped_storage()._cdata for tensor in tensors}


def _is_shareable(value: torch.Tensor) -> bool:
    """Whether a value made on the way is its layout and nothing else.

    A constant's number can be read, a subclass may hold anything, and the value that stands for
    others is detached.
    """
    if type(value) is not FakeTensor or value.constant is not None:
        return False
    return _lies_plainly(value) and not value.requires_grad


def _lies_plainly(value: torch.Tensor) -> bool:
    """Whether `_layout` tells all of how a tensor's data is to be read."""
    return value.layout is torch.strided and not value.is_conj() and not value.is_neg()


def _layout(value: torch.Tensor) -> tuple[object, ...]:
    """All that an operator can tell of a tensor without its data."""
    place = (value.dtype, value.device, value.requires_grad)
    storage = (value.storage_offset(), value.untyped_storage().nbytes())
    return (value.shape, value.stride(), *place, *storage)
