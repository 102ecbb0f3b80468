"""Stage 6: the interface every lowering implements, loading one, and body reuse.

A lowering turns one body into a callable. It is loaded by dotted name, so that nothing of an
unused library is imported. A new one is a file in backends/ and a
line in `LOWERINGS` of options.py.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any, Protocol, final

import torch

from deltapass.compiler.varying import VaryingBodies
from deltapass.errors import LoweringError, UnknownLoweringError
from deltapass.graph.executable import Lowered
from deltapass.graph.program import Body
from deltapass.options import LOWERINGS


def on_device(lowered: Mapping[str, Lowered], place: torch.device) -> dict[str, Lowered]:
    """The same, for tensors of any device: moved to `place`, and what comes out moved back."""

    def moving(run: Lowered) -> Lowered:
        def call(*arguments: torch.Tensor) -> Sequence[torch.Tensor]:
            back = arguments[0].device if arguments else place
            return tuple(made.to(back) for made in run(*(given.to(place) for given in arguments)))

        return call

    return {name: moving(run) for name, run in lowered.items()}


class Lowering(Protocol):
    """What a lowering must offer; tests/backends/test_contract.py holds every one to it.

    `exact` promises results equal to the eager operators' bit for bit; then every body keeps the
    layouts it was traced with. A lowering that takes weights which hold other tensors, such as
    quantised ones, says so by `wrapped = True`; for others these are refused.
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
    """Bodies lowered so far. Equal bodies are lowered once, whichever variant uses them.

    Where sizes vary, `sizes` are those of the symbols at this shape, and `varying` holds the bodies
    that all shapes share.
    """

    name: str
    lowering: Lowering
    varying: VaryingBodies | None = None
    sizes: Mapping[str, int] = field(default_factory=dict)
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

    @contextmanager
    def together(self) -> Iterator[None]:
        """Several bodies: their compiles may overlap, and all are ready when it is left.

        An error of the block itself stays as it is.

        Raises:
            LoweringError: If one of them turns out not to compile when all are waited for.
        """
        overlapping: AbstractContextManager[object] = getattr(
            self.lowering, "together", nullcontext
        )()
        inside: BaseException | None = None
        try:
            with overlapping:
                try:
                    yield
                except BaseException as error:
                    inside = error
                    raise
        except Exception as error:
            if error is inside:
                raise
            raise LoweringError(self.name, "all", f"{type(error).__name__}: {error}") from error

    def _lower(self, body: Body) -> Lowered:
        reason = self.lowering.can_lower(body)
        if reason is not None:
            raise LoweringError(self.name, body.name, reason)
        try:
            shared = self.varying.get(body, self.sizes) if self.varying and body.varying else None
            return shared or self.lowering.lower(body)
        except Exception as error:
            raise LoweringError(self.name, body.name, f"{type(error).__name__}: {error}") from error
