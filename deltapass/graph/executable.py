"""How a program runs: its calls in order, on bodies that a lowering has made callable."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol, final

import torch

from deltapass.graph.program import Literal, Macs

Lowered = Callable[..., Sequence[torch.Tensor]]


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
