"""Finding the blocks of a toy: with the module stack that Dynamo leaves, and without it."""

from __future__ import annotations

from typing import Any

import models
import torch
from torch import fx

from deltapass.compiler.blocks import find_blocks
from deltapass.compiler.capture import capture
from deltapass.compiler.tracing import trace
from deltapass.graph.program import Captured
from deltapass.graph.stack import Stack

Graph = tuple[fx.GraphModule, tuple[Any, ...]]


def traced(model: models.Denoiser) -> Graph:
    """What Dynamo makes of one call."""
    args, kwargs = model.inputs(500.0)
    return trace(models.randomise(model), args, kwargs)


def stack_of(model: models.Denoiser) -> Stack:
    return find_blocks(capture(*traced(model)))


def stripped(graph: Graph) -> Captured:
    """The same graph, captured without a trace of its modules."""
    module, inputs = graph
    copy = fx.GraphModule(module, fx.Graph())
    copy.graph.output(copy.graph.graph_copy(module.graph, values := {}))
    for old, new in values.items():
        new.meta.pop("nn_module_stack", None)
        if hasattr(old, "_dynamo_source"):
            new._dynamo_source = old._dynamo_source
    copy.recompile()
    return capture(copy, inputs)


def names(stack: Stack) -> list[str]:
    return [block.name for block in stack.blocks]


class Residual(torch.nn.Module):
    """A residual block of plain layers that reads its stream alone."""

    def __init__(self, width: int = models.D, depth: int = 2) -> None:
        super().__init__()
        self.layers = torch.nn.ModuleList(torch.nn.Linear(width, width) for _ in range(depth))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = x
        for layer in self.layers:
            y = torch.tanh(layer(y))
        return x + y
