"""Stage 6: the interface every lowering implements, the table of lowerings, and body reuse.

A lowering turns one body into a callable. It is loaded by dotted name, so that nothing of an
unused library is imported. A new one is a file in backends/ and a line in `LOWERINGS`.
"""

from __future__ import annotations

import importlib
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Final, Protocol, final

import torch

from deltapass.errors import LoweringError, UnknownLoweringError
from deltapass.graphs import Body, Literal, Macs

Lowered = Callable[..., Sequence[torch.Tensor]]


def on_device(lowered: Mapping[str, Lowered], place: torch.device) -> dict[str, Lowered]:
    """The same, for tensors of any device: moved to `place`, and what comes out moved back."""

    def moving(run: Lowered) -> Lowered:
        def call(*arguments: torch.Tensor) -> Sequence[torch.Tensor]:
            back = arguments[0].device if arguments else place
            return tuple(made.to(back) for made in run(*(given.to(place) for given in arguments)))

        return call

    return {name: moving(run) for name, run in lowered.items()}


LOWERINGS: Final[Mapping[str, str]] = MappingProxyType(
    {
        "eager": "deltapass.backends.eager:EagerLowering",
        "inductor": "deltapass.backends.inductor:InductorLowering",
        "onnx": "deltapass.backends.onnx:OnnxLowering",
        "tensorrt": "deltapass.backends.tensorrt:TensorRTLowering",
    }
)


class Lowering(Protocol):
    """What a lowering must offer; tests/backends/test_contract.py holds every one to it.

    `exact` promises results equal to the eager operators' bit for bit; then every body keeps the
    layouts it was traced with.
    """

    exact: bool

    def can_lower(self, body: Body) -> str | None:
        """Why a body cannot be lowered, or None. Must not change the body."""

    def lower(self, body: Body) -> Lowered:
        """A callable on real tensors laid out as `body.inputs`, giving one tensor an output.

        It must not write to its arguments.
        """

    def plain(self, module: torch.fx.GraphModule, arguments: Sequence[Any]) -> Callable[..., Any]:
        """The whole, unchanged graph, as torch.compile without deltapass would run it."""

    def fingerprint(self) -> str:
        """Text that changes whenever the lowered code may change: versions and settings."""


def load_lowering(name: str, mode: str | None = None) -> Lowering:
    """Load a lowering from the table.

    Args:
        name: A key of `LOWERINGS`.
        mode: The `mode` of torch.compile, for lowerings that know it.

    Raises:
        UnknownLoweringError: If there is no such lowering; names the near match.
    """
    if name not in LOWERINGS:
        raise UnknownLoweringError(name, tuple(LOWERINGS))
    module, _, attribute = LOWERINGS[name].partition(":")
    lowering: Lowering = getattr(importlib.import_module(module), attribute)(mode)
    return lowering


@final
@dataclass
class LoweredBodies:
    """Bodies lowered so far. Equal bodies are lowered once, whichever variant uses them."""

    name: str
    lowering: Lowering
    seconds: float = 0.0
    _lowered: dict[tuple[object, ...], Lowered] = field(default_factory=dict)

    @property
    def count(self) -> int:
        """Distinct bodies lowered."""
        return len(self._lowered)

    def get(self, body: Body) -> Lowered:
        """The callable of a body, lowered on first request.

        Raises:
            LoweringError: If the lowering cannot take the body, or fails on it.
        """
        if body.key not in self._lowered:
            self._lowered[body.key] = self._lower(body)
        return self._lowered[body.key]

    def _lower(self, body: Body) -> Lowered:
        reason = self.lowering.can_lower(body)
        if reason is not None:
            raise LoweringError(self.name, body.name, reason)
        started = time.perf_counter()
        try:
            return self.lowering.lower(body)
        except Exception as error:
            raise LoweringError(self.name, body.name, f"{type(error).__name__}: {error}") from error
        finally:
            self.seconds += time.perf_counter() - started


class CallList(Protocol):
    """What can be run: calls in order, on named values. A `Program`, or a variant of a bundle."""

    @property
    def inputs(self) -> tuple[str, ...]:
        """Names of the values handed in."""

    @property
    def calls(self) -> tuple[Any, ...]:
        """The calls, each with `inputs`, `outputs` and what is called, `body`."""

    @property
    def results(self) -> tuple[str | Literal, ...]:
        """The model's outputs: value names, or literals."""

    @property
    def deltas(self) -> tuple[str, ...]:
        """Value names of the deltas."""

    @property
    def macs(self) -> Macs:
        """Multiply-accumulates of one run."""


@final
class Executable:
    """A program whose bodies are lowered: calls them in order and lets go of values early.

    Values live in numbered slots. A slot is emptied after its last use, so that stitching
    bodies together holds no more memory than one graph would.
    """

    def __init__(self, program: CallList, lower: Callable[[Any], Lowered]) -> None:
        self.program = program
        self.macs = program.macs
        slots = {name: at for at, name in enumerate(program.inputs)}
        for call in program.calls:
            for name in call.outputs:
                slots.setdefault(name, len(slots))
        results = (result for result in program.results if isinstance(result, str))
        kept = {*results, *program.deltas}
        self._size = len(slots)
        self._results = tuple(
            (slots[r], None) if isinstance(r, str) else (None, r.value) for r in program.results
        )
        self._deltas = tuple(slots[name] for name in program.deltas)
        self._steps = tuple(
            (
                lower(call.body),
                tuple(slots[name] for name in call.inputs),
                tuple(slots[name] for name in call.outputs),
                tuple(slots[name] for name in dead),
            )
            for call, dead in zip(program.calls, _last_uses(program, kept), strict=True)
        )

    def __call__(
        self, arguments: Sequence[Any]
    ) -> tuple[tuple[Any, ...], tuple[torch.Tensor, ...]]:
        """Run on the program's inputs; gives the model's outputs and the deltas."""
        values: list[Any] = [*arguments, *(None for _ in range(self._size - len(arguments)))]
        for run, taken, given, dead in self._steps:
            made = run(*[values[slot] for slot in taken])
            for slot, value in zip(given, made, strict=True):
                values[slot] = value
            for slot in dead:
                values[slot] = None
        results = tuple(
            literal if slot is None else values[slot] for slot, literal in self._results
        )
        return results, tuple(values[slot] for slot in self._deltas)


def _last_uses(program: CallList, kept: set[str]) -> list[tuple[str, ...]]:
    """For every call, the values nobody reads after it."""
    seen = set(kept)
    dead = []
    for call in reversed(program.calls):
        names = dict.fromkeys((*call.inputs, *call.outputs))
        dead.append(tuple(name for name in names if name not in seen))
        seen.update(names)
    return list(reversed(dead))
