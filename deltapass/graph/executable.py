"""How a program runs: its calls in order, on bodies that a lowering has made callable."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Protocol, final

import torch

from deltapass.graph.program import Literal, Macs

Lowered = Callable[..., Sequence[torch.Tensor]]
# A variant that can be run: inputs (then deltas) -> the model's outputs, new deltas.
Variant = Callable[[Sequence[Any]], tuple[tuple[Any, ...], tuple[torch.Tensor, ...]]]


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
    """A program whose bodies are lowered, run by a Python function generated for it.

    The function calls the bodies in order and lets go of every value after its last use, so that
    stitching bodies together holds no more memory than one graph would. `source` is its text. The
    generator of torch.fx cannot be used: it names what it calls by module and attribute, and
    lowered bodies are callables that have neither.
    """

    def __init__(self, program: CallList, lower: Callable[[Any], Lowered]) -> None:
        self.program = program
        self.macs = program.macs
        self.source = generate(program)
        bodies: dict[str, Any] = {
            f"body_{at}": lower(call.body) for at, call in enumerate(program.calls)
        }
        literals = {f"literal_{at}": value for at, value in _literals(program)}
        names: dict[str, Any] = {**bodies, **literals}
        exec(compile(self.source, "<deltapass program>", "exec"), names)
        self._run: Variant = names.pop("run")  # in its own globals it would be a cycle

    def __call__(
        self, arguments: Sequence[Any]
    ) -> tuple[tuple[Any, ...], tuple[torch.Tensor, ...]]:
        """Run on the program's inputs; gives the model's outputs and the deltas."""
        return self._run(arguments)


def generate(program: CallList) -> str:
    """The text of a function `run(arguments)` that makes the program's calls.

    Two calls, of which the second gives the only delta, become:

        def run(arguments):
            v0, v1, v2, = arguments
            v3, = body_0(v0, v1)
            v4, = body_1(v3, v2)
            v3 = None
            return (v3,), (v4,)
    """
    names: dict[str, str] = {}
    for name in (*program.inputs, *(name for call in program.calls for name in call.outputs)):
        names.setdefault(name, f"v{len(names)}")
    lines = [f"{_targets(program.inputs, names)}arguments"]
    for at, (call, dead) in enumerate(zip(program.calls, _last_uses(program), strict=True)):
        taken = ", ".join(names[name] for name in call.inputs)
        lines.append(f"{_targets(call.outputs, names)}body_{at}({taken})")
        if dead:
            lines.append(f"{' = '.join(names[name] for name in dead)} = None")
    literals = {at for at, _ in _literals(program)}
    results = (
        f"literal_{at}" if at in literals else names[str(result)]
        for at, result in enumerate(program.results)
    )
    deltas = (names[name] for name in program.deltas)
    lines.append(f"return {_tuple(results)}, {_tuple(deltas)}")
    return "\n    ".join(["def run(arguments):", *lines, ""])


def _targets(names: Sequence[str], short: Mapping[str, str]) -> str:
    """Left side of an assignment that takes exactly these values apart."""
    return f"{', '.join(short[name] for name in names)}, = " if names else "() = "


def _tuple(parts: Iterable[str]) -> str:
    return f"({''.join(f'{part}, ' for part in parts)})"


def _literals(program: CallList) -> list[tuple[int, object]]:
    """Position and value of the results that are literals."""
    return [(at, r.value) for at, r in enumerate(program.results) if isinstance(r, Literal)]


def _last_uses(program: CallList) -> list[tuple[str, ...]]:
    """For every call, the values made by calls that nobody reads after it.

    The program's inputs are left out: whoever calls holds them anyway.
    """
    results = (result for result in program.results if isinstance(result, str))
    seen = {*results, *program.deltas, *program.inputs}
    dead = []
    for call in reversed(program.calls):
        names = dict.fromkeys((*call.inputs, *call.outputs))
        dead.append(tuple(name for name in names if name not in seen))
        seen.update(names)
    return list(reversed(dead))
