"""compiler/unwrapped.py: graphs that are traced on keep weights that hold other tensors."""

from __future__ import annotations

import pytest
import torch
from driving import compiled, in_session, oracle, tensors
from models import AdaLNBlock, AdaLNDenoiser, randomise
from torch import Tensor
from wrapped import Nested8Bit, Scaled8Bit, scaled

from deltapass.compiler.capture import capture
from deltapass.compiler.tracing import trace

STEPS = 4


class Writes(AdaLNBlock):
    """Writes in place into a tensor of its own, as rotary embeddings do."""

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        made = super().forward(x, c).clone()
        made[:, ::2] *= 1.5
        return x + made


class Autocast(AdaLNBlock):
    """Enters a mode, in which operators work otherwise."""

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            y = super().forward(x, c)
        return y.to(x.dtype)


def model_of(block: type[AdaLNBlock], kind: type[Scaled8Bit]) -> AdaLNDenoiser:
    model = AdaLNDenoiser(depth=4)
    model.blocks = torch.nn.ModuleList(block() for _ in range(4))
    made = scaled(randomise(model), kind)
    assert isinstance(made, AdaLNDenoiser)
    return made


@pytest.mark.parametrize("block", [Writes, Autocast])
@pytest.mark.parametrize("kind", [Scaled8Bit, Nested8Bit])
def test_cached_trajectory_equals_the_oracle(
    block: type[AdaLNBlock], kind: type[Scaled8Bit]
) -> None:
    model = model_of(block, kind)
    calls = [model.inputs(999.0 - step, step) for step in range(STEPS)]
    outputs, report = in_session(compiled(model, cached_blocks=2, strict=True), calls)
    assert report.cached == 2
    table = tuple(entry.realised for entry in report.entries)
    assert all(map(torch.equal, tensors(outputs), tensors(oracle(model, table, calls))))


def test_each_reader_takes_the_tensors_out_itself() -> None:
    """So that a block reads the weight, and nothing that was made before it."""
    model = model_of(Writes, Scaled8Bit)
    args, kwargs = model.inputs(500.0)
    found = capture(*trace(model, args, kwargs))
    weights = [given for given in found.inputs if given.spec and given.spec.wrapped]
    assert len(weights) == sum(isinstance(p, Scaled8Bit) for p in model.parameters())
    taken = found.graph.find_nodes(op="call_function", target=getattr)
    assert taken
    assert all(node.next.op == "call_function" and len(node.users) == 1 for node in taken)
