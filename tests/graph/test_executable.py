"""A program becomes one generated function: its text, and that it holds nothing too long."""

from __future__ import annotations

import itertools
import weakref
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch

from deltapass.graph.executable import Executable, generate
from deltapass.graph.program import Literal, Macs


@dataclass(frozen=True)
class Made:
    """A call as a variant of a bundle has it: the body is whatever it is called by."""

    body: Any
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]


@dataclass(frozen=True)
class Calls:
    """A list of calls that can be run."""

    inputs: tuple[str, ...]
    calls: tuple[Made, ...]
    results: tuple[str | Literal, ...]
    deltas: tuple[str, ...] = ()
    macs: Macs = field(default_factory=Macs)


TWO = Calls(
    inputs=("x", "w", "b.0"),
    calls=(Made("one", ("x", "w"), ("h",)), Made("two", ("h", "b.0"), ("out", "side"))),
    results=("out", Literal(None)),
    deltas=("h",),
)


def test_the_text_is_the_calls_in_order() -> None:
    assert generate(TWO).splitlines() == [
        "def run(arguments):",
        "    v0, v1, v2, = arguments",
        "    v3, = body_0(v0, v1)",
        "    v4, v5, = body_1(v3, v2)",
        "    v5 = None",
        "    return (v4, literal_1, ), (v3, )",
        "    ",
    ]


def test_names_of_any_kind_and_literals_of_any_kind() -> None:
    strange = object()
    program = Calls(
        inputs=("class", "a b"),
        calls=(Made("add", ("class", "a b"), ("None",)),),
        results=(Literal(strange), "None"),
    )
    run = Executable(program, lambda _: lambda a, b: (a + b,))
    results, deltas = run([torch.ones(2), torch.ones(2)])
    assert results[0] is strange
    assert torch.equal(results[1], torch.full((2,), 2.0))
    assert deltas == ()


def test_a_program_of_no_calls_hands_its_inputs_on() -> None:
    x = torch.ones(2)
    results, _ = Executable(Calls(("x",), (), ("x",)), lambda body: body)([x])
    assert results[0] is x


def test_no_inputs_and_no_results() -> None:
    assert Executable(Calls((), (), ()), lambda body: body)([]) == ((), ())


@pytest.mark.parametrize("given", [0, 2])
def test_another_number_of_arguments_is_an_error(given: int) -> None:
    run = Executable(Calls(("x",), (), ("x",)), lambda body: body)
    with pytest.raises(ValueError, match="values to unpack"):
        run([torch.ones(1)] * given)


def test_a_value_is_let_go_of_after_its_last_use() -> None:
    seen: list[weakref.ref[torch.Tensor]] = []
    alive: list[int] = []

    def body(x: torch.Tensor) -> tuple[torch.Tensor]:
        alive.append(sum(reference() is not None for reference in seen))
        made = x + 1
        seen.append(weakref.ref(made))
        return (made,)

    names = ("x", "a", "b", "c", "d")
    calls = tuple(Made("", (name,), (after,)) for name, after in itertools.pairwise(names))
    lower: Callable[[Any], Any] = lambda _: body  # noqa: E731
    results, _ = Executable(Calls(("x",), calls, ("d",)), lower)([torch.zeros(1)])
    assert results[0].item() == 4
    assert max(alive) == 1, "of those made before, only the one being read"
