"""What a graph computes from nothing is folded by torch, once, and only that."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import fx

from deltapass.exporting.constants import LARGEST, Constants
from deltapass.graph.sizes import Size

aten = torch.ops.aten
Built = tuple[fx.Graph, torch.nn.Module, Constants]


@pytest.fixture
def built() -> Built:
    graph, root = fx.Graph(), torch.nn.Module()
    return graph, root, Constants(graph, root, ())


def arange(graph: fx.Graph, length: Any) -> fx.Node:
    return graph.call_function(aten.arange.default, (length,), {"dtype": torch.float32})


def test_a_chain_of_constants_is_the_very_numbers_that_torch_gives(built: Built) -> None:
    graph, root, constants = built
    steps = arange(graph, 16)
    scaled = graph.call_function(aten.mul.Tensor, (steps, -9.21 / 16))
    exponent = graph.call_function(aten.exp.default, (scaled,))
    assert [constants.fold(node) for node in (steps, scaled, exponent)] == [True] * 3
    held = constants.get(exponent)
    assert held is not None and held.op == "get_attr"
    expected = torch.exp(torch.arange(16, dtype=torch.float32) * (-9.21 / 16))
    assert torch.equal(getattr(root, str(held.target)), expected)


def test_only_what_is_asked_for_becomes_an_attribute_and_only_once(built: Built) -> None:
    graph, root, constants = built
    steps = arange(graph, 4)
    twice = graph.call_function(aten.mul.Tensor, (steps, 2))
    assert constants.fold(steps) and constants.fold(twice)
    assert constants.get(twice) is constants.get(twice)
    assert len(dict(root.named_buffers())) == 1


def test_what_depends_on_an_input_is_left_alone(built: Built) -> None:
    graph, _, constants = built
    given, steps = graph.placeholder("given"), arange(graph, 4)
    assert constants.fold(steps)
    total = graph.call_function(aten.add.Tensor, (steps, given))
    assert not constants.fold(total)
    assert constants.get(total) is None and constants.get(given) is None
    nested = graph.call_function(aten.cat.default, ([steps, given],))
    assert not constants.fold(nested), "an input inside a list is an input"


def test_lists_of_constants_are_folded(built: Built) -> None:
    graph, root, constants = built
    steps = arange(graph, 3)
    both = graph.call_function(aten.cat.default, ([steps, steps],))
    assert constants.fold(steps) and constants.fold(both)
    held = constants.get(both)
    assert held is not None
    assert getattr(root, str(held.target)).tolist() == [0, 1, 2, 0, 1, 2]


@pytest.mark.parametrize(
    "make",
    [
        lambda graph: graph.call_function(aten.rand.default, ([4],)),
        lambda graph: graph.call_function(aten.randn.default, ([4],)),
        lambda graph: graph.call_function(aten.randint.default, (9, [4])),
    ],
)
def test_random_numbers_are_drawn_anew_each_time(
    built: Built, make: Callable[[fx.Graph], fx.Node]
) -> None:
    graph, _, constants = built
    state = torch.get_rng_state()
    assert not constants.fold(make(graph))
    assert torch.equal(torch.get_rng_state(), state)


def test_a_size_that_varies_is_not_frozen(built: Built) -> None:
    graph, _, constants = built
    assert not constants.fold(arange(graph, Size(4, "tokens")))
    inside = graph.call_function(aten.zeros.default, ([2, Size(4, "tokens")],))
    assert not constants.fold(inside)
    named = graph.call_function(aten.full.default, ([2], Size(4, "tokens")))
    assert not constants.fold(named)


def test_large_constants_are_left_to_the_engine(built: Built) -> None:
    graph, _, constants = built
    assert constants.fold(arange(graph, LARGEST // 4))
    large = arange(graph, LARGEST // 4 + 1)
    assert not constants.fold(large)
    assert not constants.fold(graph.call_function(aten.sum.default, (large,)))


def test_what_is_no_operator_of_torch_is_left_alone(built: Built) -> None:
    graph, _, constants = built
    assert not constants.fold(graph.call_function(max, (1, 2)))
    assert not constants.fold(graph.get_attr("weight"))


def test_several_results_are_left_to_the_engine(built: Built) -> None:
    graph, _, constants = built
    steps = arange(graph, 6)
    assert constants.fold(steps)
    parts = graph.call_function(aten.split.Tensor, (steps, 2))
    assert not constants.fold(parts)


def test_a_strided_constant_is_laid_out_row_by_row(built: Built) -> None:
    graph, root, constants = built
    grid = graph.call_function(aten.eye.m, (2, 3))
    turned = graph.call_function(aten.t.default, (grid,))
    assert constants.fold(grid) and constants.fold(turned)
    held = constants.get(turned)
    assert held is not None
    buffer = getattr(root, str(held.target))
    assert buffer.is_contiguous() and torch.equal(buffer, torch.eye(2, 3).t())


def test_nothing_that_is_folded_carries_gradients(built: Built) -> None:
    graph, root, constants = built
    with torch.enable_grad():
        steps = arange(graph, 4)
        assert constants.fold(steps)
    held = constants.get(steps)
    assert held is not None and not getattr(root, str(held.target)).requires_grad
