"""What a graph computes from nothing is folded by torch, once, and only that."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import fx

from deltapass.exporting.segment_program import LARGEST, fold_constants
from deltapass.graph.sizes import Size

aten = torch.ops.aten
Folded = tuple[list[str], dict[str, torch.Tensor]]


def fold(graph: fx.Graph, *results: Any) -> Folded:
    """Names of the operations that are left, and the attributes."""
    graph.output(results)
    held = fold_constants(graph, ())
    graph.lint()
    attributes = {node.target for node in graph.nodes if node.op == "get_attr"}
    assert attributes - {"weight"} == set(held)
    return [node.name for node in graph.nodes if node.op == "call_function"], held


def arange(graph: fx.Graph, length: Any) -> fx.Node:
    return graph.call_function(aten.arange.default, (length,), {"dtype": torch.float32})


def test_a_chain_of_constants_is_the_very_numbers_that_torch_gives() -> None:
    graph = fx.Graph()
    scaled = graph.call_function(aten.mul.Tensor, (arange(graph, 16), -9.21 / 16))
    exponent = graph.call_function(aten.exp.default, (scaled,))
    left, held = fold(graph, exponent)
    assert left == []
    expected = torch.exp(torch.arange(16, dtype=torch.float32) * (-9.21 / 16))
    assert torch.equal(held["constant_0"], expected)


def test_only_what_is_asked_for_becomes_an_attribute_and_only_once() -> None:
    graph = fx.Graph()
    twice = graph.call_function(aten.mul.Tensor, (arange(graph, 4), 2))
    left, held = fold(graph, twice, twice)
    assert left == [] and len(held) == 1
    results = list(graph.nodes)[-1].args[0]
    assert results[0] is results[1]


def test_a_name_that_is_taken_is_not_given_again() -> None:
    graph = fx.Graph()
    graph.output(arange(graph, 4))
    assert list(fold_constants(graph, {"constant_0"})) == ["constant_1"]


def test_what_depends_on_an_input_is_left_alone() -> None:
    graph = fx.Graph()
    given, steps = graph.placeholder("given"), arange(graph, 4)
    total = graph.call_function(aten.add.Tensor, (steps, given))
    nested = graph.call_function(aten.cat.default, ([steps, given],))
    left, held = fold(graph, total, nested)
    assert left == [total.name, nested.name], "an input inside a list is an input"
    assert [value.tolist() for value in held.values()] == [[0, 1, 2, 3]]


def test_lists_of_constants_are_folded() -> None:
    graph = fx.Graph()
    steps = arange(graph, 3)
    left, held = fold(graph, graph.call_function(aten.cat.default, ([steps, steps],)))
    assert left == []
    assert held["constant_0"].tolist() == [0, 1, 2, 0, 1, 2]


@pytest.mark.parametrize(
    "make",
    [
        lambda graph: graph.call_function(aten.rand.default, ([4],)),
        lambda graph: graph.call_function(aten.randn.default, ([4],)),
        lambda graph: graph.call_function(aten.randint.default, (9, [4])),
    ],
)
def test_random_numbers_are_drawn_anew_each_time(make: Callable[[fx.Graph], fx.Node]) -> None:
    graph = fx.Graph()
    state = torch.get_rng_state()
    drawn = make(graph)
    assert fold(graph, drawn) == ([drawn.name], {})
    assert torch.equal(torch.get_rng_state(), state)


def test_a_size_that_varies_is_not_frozen() -> None:
    graph = fx.Graph()
    size = Size(4, "tokens")
    varying = (
        arange(graph, size),
        graph.call_function(aten.zeros.default, ([2, size],)),
        graph.call_function(aten.full.default, ([2], size)),
    )
    assert fold(graph, *varying) == ([node.name for node in varying], {})


def test_large_constants_are_left_to_the_engine() -> None:
    graph = fx.Graph()
    fits, large = arange(graph, LARGEST // 4), arange(graph, LARGEST // 4 + 1)
    total = graph.call_function(aten.sum.default, (large,))
    left, held = fold(graph, fits, total)
    assert left == [large.name, total.name]
    assert [value.numel() for value in held.values()] == [LARGEST // 4]


def test_what_is_no_operator_of_torch_is_left_alone() -> None:
    graph = fx.Graph()
    largest, weight = graph.call_function(max, (1, 2)), graph.get_attr("weight")
    assert fold(graph, largest, weight) == ([largest.name], {})


def test_several_results_are_left_to_the_engine() -> None:
    graph = fx.Graph()
    parts = graph.call_function(aten.split.Tensor, (arange(graph, 6), 2))
    left, held = fold(graph, parts)
    assert left == [parts.name] and len(held) == 1


def test_a_strided_constant_is_laid_out_row_by_row() -> None:
    graph = fx.Graph()
    grid = graph.call_function(aten.eye.m, (2, 3))
    left, held = fold(graph, graph.call_function(aten.t.default, (grid,)))
    assert left == []
    assert held["constant_0"].is_contiguous()
    assert torch.equal(held["constant_0"], torch.eye(2, 3).t())


def test_nothing_that_is_folded_carries_gradients() -> None:
    graph = fx.Graph()
    steps = arange(graph, 4)
    with torch.enable_grad():
        _, held = fold(graph, steps)
    assert not held["constant_0"].requires_grad
