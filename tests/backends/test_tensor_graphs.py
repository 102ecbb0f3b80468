"""backends/tensor_graphs.py: graphs handed to engines that know of tensors alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from deltapass.backends.tensor_graphs import engine_of_graph, exported
from torch import fx, nn

from deltapass.graph.program import TensorSpec


def build(_: str, module: nn.Module, inputs: Sequence[TensorSpec]) -> Callable[..., Any]:
    """The exported program as an engine: tensors in, a tuple of tensors out."""
    program = exported(module, inputs)
    assert all("val" in node.meta for node in program.graph.output_node().args[0])
    run: Callable[..., Any] = program.module()
    return run


@pytest.mark.parametrize("bare", [False, True])
def test_results_that_are_no_tensors_come_back(bare: bool) -> None:
    graph = fx.Graph()
    x = graph.placeholder("x")
    doubled = graph.call_function(torch.mul, (x, graph.placeholder("n")))
    graph.output(doubled if bare else (3, doubled, None, graph.call_method("size", (x, 0))))
    given = torch.ones(2, 3), 2
    made = engine_of_graph(fx.GraphModule(nn.Module(), graph), given, build)(*given)
    tensor = made if bare else made[1]
    assert torch.equal(tensor, torch.full((2, 3), 2.0))
    assert bare or (made[0], *made[2:]) == (3, None, 2)


def test_graph_that_holds_a_real_constant_is_exported() -> None:
    graph = fx.Graph()
    held = nn.Module()
    held.constant = torch.tensor([1.0, 2.0])
    x = graph.placeholder("x")
    graph.output((graph.call_function(torch.add, (x, graph.get_attr("constant"))),))
    (made,) = engine_of_graph(fx.GraphModule(held, graph), [torch.ones(2)], build)(torch.ones(2))
    assert made.tolist() == [2.0, 3.0]
