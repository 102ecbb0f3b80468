"""compiler/repeats.py: blocks as the longest repeating run of operations."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import models
import pytest
import torch
from torch import Tensor, fx

from deltapass.compiler.capture import capture
from deltapass.compiler.repeats import find_repeats
from deltapass.compiler.tracing import trace
from deltapass.graph.program import Captured
from deltapass.graph.stack import Block

D = 8


def captured(model: Callable[..., Any], *arguments: Tensor) -> Captured:
    return capture(fx.symbolic_trace(model), arguments or (torch.ones(2, D),))


@functools.cache
def toy(name: str) -> Captured:
    args, kwargs = models.make(name).inputs(500.0)
    return capture(*trace(models.make(name), args, kwargs))


def texts(graph: Captured, blocks: tuple[Block, ...]) -> list[list[str]]:
    """The operators of each block."""
    nodes = list(graph.module.graph.nodes)
    return [
        [getattr(node.target, "__name__", str(node.target)) for node in nodes[b.first : b.stop]]
        for b in blocks
    ]


def found(model: Callable[..., Any], *arguments: Tensor) -> list[list[str]]:
    graph = captured(model, *arguments)
    return texts(graph, find_repeats(graph))


def step(x: Tensor) -> Tensor:
    return x + torch.tanh(torch.sin(x))


STEP = ["sin", "tanh", "add"]


def test_repeated_operations_are_blocks() -> None:
    assert found(lambda x: step(step(step(x)))) == [STEP, STEP, STEP]


def test_prologue_and_epilogue_are_left_out() -> None:
    assert found(lambda x: step(step(step(x.abs()))).relu()) == [STEP, STEP, STEP]


def test_blocks_are_named_by_their_order() -> None:
    graph = captured(lambda x: step(step(x)))
    assert [block.name for block in find_repeats(graph)] == ["repeat.0", "repeat.1"]


def test_weights_may_differ() -> None:
    def model(x: Tensor, one: Tensor, two: Tensor) -> Tensor:
        return step(step(x @ one) @ two)

    weights = (torch.ones(D, D), 2 * torch.ones(D, D))
    assert found(model, torch.ones(2, D), *weights) == [["matmul", *STEP]] * 2


def test_literals_must_not_differ() -> None:
    def model(x: Tensor) -> Tensor:
        for scale in (2.0, 3.0, 4.0):
            x = x + torch.tanh(torch.sin(x) * scale)
        return x

    assert found(model) == []


def test_shapes_must_not_differ() -> None:
    def model(x: Tensor) -> Tensor:
        return step(step(x)[:, :4].relu())

    assert STEP not in found(model)


def test_types_must_not_differ() -> None:
    assert found(lambda x: step(step(x).double())) == []


def test_strides_may_differ() -> None:
    def model(x: Tensor) -> Tensor:
        return step(step(step(x.t())))

    assert found(model, torch.ones(D, D)) == [STEP, STEP, STEP]


def test_last_block_that_computes_something_else_is_left_out() -> None:
    def model(x: Tensor) -> Tensor:
        x = step(step(step(x)))
        return x + torch.tanh(torch.cos(x))

    assert found(model) == [STEP, STEP, STEP]


def test_unfinished_last_period_is_left_out() -> None:
    assert found(lambda x: torch.sin(step(step(x)))) == [STEP, STEP]


def test_long_blocks_win_over_short_repeats_inside_them() -> None:
    def block(x: Tensor) -> Tensor:
        return x + torch.tanh(torch.sin(torch.sin(torch.sin(x))))

    assert found(lambda x: block(block(block(x)))) == [["sin", "sin", "sin", "tanh", "add"]] * 3


def test_one_block_is_one_period_not_two() -> None:
    # Four blocks are also two pairs of blocks: the shorter period is meant.
    assert len(found(lambda x: step(step(step(step(x)))))) == 4


def test_cut_lies_where_fewest_values_are_alive() -> None:
    def block(x: Tensor) -> Tensor:
        a, b = torch.sin(x), torch.cos(x)
        return torch.tanh(a * b) + x

    def model(x: Tensor) -> Tensor:
        # Begins within a block: the run of equal operations starts at the first `tanh`.
        x = torch.tanh(x) + x
        return block(block(block(x)))

    assert found(model)[0][0] == "sin"


def test_two_streams_are_cut_between_blocks() -> None:
    def block(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        joint = torch.tanh(torch.cat([x, y]))
        return x + joint[:2], y + joint[2:]

    def model(x: Tensor, y: Tensor) -> Tensor:
        for _ in range(3):
            x, y = block(x, y)
        return x * y

    blocks = found(model, torch.ones(2, D), torch.ones(2, D))
    assert blocks == [["cat", "tanh", "getitem", "add", "getitem", "add"]] * 3


@pytest.mark.parametrize(
    "model",
    [
        lambda x: x,
        lambda x: x.sin(),
        lambda x: torch.tanh(torch.sin(x)),
        lambda x: step(x).relu(),
    ],
    ids=["nothing", "one", "two", "once"],
)
def test_nothing_repeats(model: Callable[..., Any]) -> None:
    assert found(model) == []


def test_attribute_held_blocks_are_found() -> None:
    blocks = find_repeats(toy("attributes"))
    assert len(blocks) == 6
    assert len({block.stop - block.first for block in blocks}) == 1


def test_every_block_of_a_toy_holds_the_same_operators() -> None:
    graph = toy("adaln")
    first, *others = texts(graph, find_repeats(graph))
    assert len(others) == 5
    assert all(other == first for other in others)


def test_last_block_of_a_two_stream_toy_is_left_out() -> None:
    assert len(find_repeats(toy("two_stream"))) == 5


def test_toy_without_blocks_has_no_repeats() -> None:
    assert find_repeats(toy("no_blocks")) == ()
