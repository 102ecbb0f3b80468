"""compiler/lowering.py: the table, bodies lowered once, and programs that let go of values."""

from __future__ import annotations

import functools
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import models
import pytest
import torch
from torch import Tensor, fx, nn

from deltapass.backend import analyse
from deltapass.compiler.lowering import LoweredBodies, load_lowering, on_device
from deltapass.compiler.outline import Outline
from deltapass.compiler.tracing import trace
from deltapass.errors import (
    LoweringError,
    MissingLibraryError,
    RefusalWarning,
    UnknownLoweringError,
)
from deltapass.graph.executable import Executable, Lowered
from deltapass.graph.program import Body, Call, Literal, Program, TensorSpec
from deltapass.options import LOWERING_NAMES, LOWERINGS


def body(name: str = "body", key: tuple[object, ...] = ("key",)) -> Body:
    """One value in, its sine out."""
    graph = fx.Graph()
    graph.output((graph.call_function(torch.sin, (graph.placeholder("x"),)),))
    spec = TensorSpec.of(torch.ones(3))
    module = fx.GraphModule(nn.Module(), graph)
    return Body(name=name, module=module, key=key, inputs=(spec,), outputs=(spec,))


class Recording:
    """A lowering that runs bodies eagerly and notes which it was given."""

    def __init__(self, *, refuses: str | None = None, fails: Exception | None = None) -> None:
        self.refuses, self.fails = refuses, fails
        self.lowered: list[str] = []

    exact = True

    def can_lower(self, body: Body) -> str | None:
        return self.refuses

    def lower(self, body: Body) -> Lowered:
        self.lowered.append(body.name)
        if self.fails is not None:
            raise self.fails
        return body.module.forward

    def plain(self, module: fx.GraphModule, arguments: Sequence[Any]) -> Callable[..., Any]:
        return module.forward


@functools.cache
def traced() -> tuple[fx.GraphModule, tuple[Any, ...]]:
    model = models.make("adaln", depth=4)
    args, kwargs = model.inputs(500.0)
    return trace(model, args, kwargs)


@functools.cache
def outlined() -> Outline:
    return analyse(*traced())


# ---- the table ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", LOWERINGS)
def test_every_lowering_of_the_table_loads(name: str) -> None:
    module, _, attribute = LOWERINGS[name].partition(":")
    try:
        loaded = load_lowering(name)
    except MissingLibraryError as missing:
        pytest.skip(str(missing))
    assert (type(loaded).__module__, type(loaded).__name__) == (module, attribute)


def test_options_offer_the_lowerings_of_the_table() -> None:
    assert set(LOWERING_NAMES) == set(LOWERINGS)


def test_unknown_lowering_is_refused_with_the_near_match() -> None:
    with pytest.raises(UnknownLoweringError, match=r"'inducter'\. Did you mean 'inductor'"):
        load_lowering("inducter")


def test_unknown_lowering_is_refused_with_the_list() -> None:
    with pytest.raises(UnknownLoweringError, match=f"Lowerings are: {', '.join(LOWERINGS)}"):
        load_lowering("xyz")


# ---- bodies ------------------------------------------------------------------------------------


def test_equal_bodies_are_lowered_once() -> None:
    lowering = Recording()
    bodies = LoweredBodies("recording", lowering)
    assert bodies.get(body("first")) is bodies.get(body("second"))
    assert (lowering.lowered, bodies.count) == (["first"], 1)


def test_other_bodies_are_lowered_too() -> None:
    bodies = LoweredBodies("recording", lowering := Recording())
    bodies.get(body("first", key=(1,)))
    bodies.get(body("second", key=(2,)))
    assert (lowering.lowered, bodies.count) == (["first", "second"], 2)


def test_stack_of_equal_blocks_lowers_one_block() -> None:
    bodies = LoweredBodies("recording", lowering := Recording())
    Executable(outlined().program, bodies.get)
    assert lowering.lowered == ["prologue", "block_0", "epilogue"]


def test_failing_lowering_is_named_with_its_body_and_the_cause() -> None:
    cause = RuntimeError("no compiler")
    bodies = LoweredBodies("recording", Recording(fails=cause))
    expected = "lowering 'recording' failed on 'block_7': RuntimeError: no compiler"
    with pytest.raises(LoweringError, match=expected) as caught:
        bodies.get(body("block_7"))
    assert caught.value.__cause__ is cause
    assert "eager" in caught.value.remedy


def test_failed_body_is_tried_again() -> None:
    bodies = LoweredBodies("recording", lowering := Recording(fails=RuntimeError("once")))
    with pytest.raises(LoweringError):
        bodies.get(body())
    lowering.fails = None
    assert bodies.get(body())(torch.zeros(3))[0].sum() == 0.0


def test_body_that_a_lowering_cannot_take_is_refused_with_the_reason() -> None:
    bodies = LoweredBodies("recording", lowering := Recording(refuses="it is too large"))
    with pytest.raises(LoweringError, match="failed on 'block_7': it is too large"):
        bodies.get(body("block_7"))
    assert lowering.lowered == []


# ---- programs ----------------------------------------------------------------------------------


def program(
    calls: Sequence[tuple[str, str]], results: Sequence[str | Literal], deltas: Sequence[str] = ()
) -> Program:
    """Calls of one-input bodies, given as (input, output)."""
    given = tuple(
        Call(label=out, body=body(out, key=(out,)), inputs=(taken,), outputs=(out,))
        for taken, out in calls
    )
    return Program(
        name="full",
        inputs=("x",),
        calls=given,
        results=tuple(results),
        deltas=tuple(deltas),
        specs={},
        weights=frozenset(),
    )


def test_program_equals_the_graph_bit_for_bit() -> None:
    module, inputs = traced()
    run = Executable(outlined().program, lambda body: body.module.forward)
    (result,), deltas = run(inputs)
    assert torch.equal(result, module(*inputs)[0])
    assert deltas == ()


def test_results_and_deltas_come_in_their_order() -> None:
    chain = program([("x", "a"), ("a", "b")], ["b", Literal(7), "a", "b"], ["a", "x"])
    x = torch.ones(3)
    results, deltas = Executable(chain, lambda body: body.module.forward)([x])
    assert results[1] == 7
    assert torch.equal(results[0], x.sin().sin())
    assert torch.equal(results[2], x.sin())
    assert results[3] is results[0]
    assert deltas[0] is results[2]
    assert deltas[1] is x


def test_given_arguments_are_not_changed() -> None:
    chain = program([("x", "a"), ("a", "b")], ["b"])
    arguments = [torch.ones(3)]
    Executable(chain, lambda body: body.module.forward)(arguments)
    assert torch.equal(arguments[0], torch.ones(3))


def test_run_leaves_nothing_behind_for_the_next() -> None:
    run = Executable(program([("x", "a"), ("a", "b")], ["b"]), lambda body: body.module.forward)
    (first,), _ = run([torch.ones(3)])
    (second,), _ = run([2 * torch.ones(3)])
    assert torch.equal(first, torch.ones(3).sin().sin())
    assert torch.equal(second, (2 * torch.ones(3)).sin().sin())


class Watching:
    """Makes bodies that note which earlier values are alive while they run."""

    def __init__(self) -> None:
        self.made: dict[str, weakref.ref[Tensor]] = {}
        self.alive: dict[str, set[str]] = {}

    def lower(self, body: Body) -> Lowered:
        def run(*values: Tensor) -> tuple[Tensor, ...]:
            self.alive[body.name] = {name for name, ref in self.made.items() if ref() is not None}
            result = values[0] + 1.0
            self.made[body.name] = weakref.ref(result)
            return (result,)

        return run


def test_value_is_let_go_after_its_last_use() -> None:
    watching = Watching()
    chain = program(
        [("x", "a"), ("a", "b"), ("b", "c"), ("c", "d"), ("b", "e"), ("e", "f")], ["f"], ["d"]
    )
    Executable(chain, watching.lower)([torch.ones(3)])
    assert watching.alive == {
        "a": set(),
        "b": {"a"},
        "c": {"b"},
        "d": {"b", "c"},
        "e": {"b", "d"},
        "f": {"e", "d"},
    }


def test_results_and_deltas_are_kept_to_the_end() -> None:
    watching = Watching()
    chain = program([("x", "a"), ("a", "b"), ("b", "c"), ("c", "d")], ["a", "d"], ["b"])
    Executable(chain, watching.lower)([torch.ones(3)])
    assert watching.alive["d"] == {"a", "b", "c"}


def test_results_hold_nothing_else_alive() -> None:
    watching = Watching()
    chain = program([("x", "a"), ("a", "b"), ("b", "c")], ["c"])
    results, _ = Executable(chain, watching.lower)([torch.ones(3)])
    assert {name for name, ref in watching.made.items() if ref() is not None} == {"c"}
    assert len(results) == 1


def test_body_that_gives_too_little_is_an_error() -> None:
    chain = program([("x", "a")], ["a"])
    run = Executable(chain, lambda body: lambda x: ())
    with pytest.raises(ValueError, match="not enough values"):
        run([torch.ones(3)])


def test_on_device_moves_what_goes_in_and_comes_out() -> None:
    seen: list[torch.device] = []

    def run(*given: torch.Tensor) -> tuple[torch.Tensor, ...]:
        seen.extend(tensor.device for tensor in given)
        return given[0] + given[1], given[1]

    moved = on_device({"run": run}, torch.device("meta"))["run"]
    made = moved(torch.ones(2, device="meta"), torch.ones(2))
    assert [place.type for place in seen] == ["meta", "meta"]
    assert [tensor.device.type for tensor in made] == ["meta", "meta"]
    here = on_device({"run": run}, torch.device("cpu"))["run"](torch.ones(2), torch.ones(2))
    assert here[0].tolist() == [2.0, 2.0]


class FailingTogether(Recording):
    """Its bodies turn out not to compile when all are waited for."""

    @contextmanager
    def together(self) -> Iterator[None]:
        yield
        raise RuntimeError("no compiler")


def test_failure_of_bodies_lowered_together_is_a_lowering_error() -> None:
    bodies = LoweredBodies("inductor", FailingTogether())
    with pytest.raises(LoweringError, match="RuntimeError: no compiler"), bodies.together():
        bodies.get(body())


def test_error_of_one_body_stays_as_it_is() -> None:
    bodies = LoweredBodies("inductor", Recording(refuses="too large"))
    with pytest.raises(LoweringError, match="'body': too large"), bodies.together():
        bodies.get(body())


@pytest.mark.parametrize("error", [KeyError("x"), RefusalWarning("smaller")])
def test_error_of_the_block_is_not_the_lowerings(error: Exception) -> None:
    bodies = LoweredBodies("inductor", FailingTogether())
    with pytest.raises(type(error)) as caught, bodies.together():
        raise error
    assert caught.value is error
