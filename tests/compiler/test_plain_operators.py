"""compiler/plain_operators.py: graphs that enter modes are cached, and stay what they were."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from driving import compiled, in_session, oracle, tensors
from models import AdaLNBlock, AdaLNDenoiser, randomise
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.attention.flex_attention import flex_attention

from deltapass.compiler.capture import capture
from deltapass.compiler.tracing import trace

STEPS = 4


def heads(x: Tensor) -> Tensor:
    return x.unflatten(-1, (2, -1)).transpose(1, 2)


def merged(x: Tensor) -> Tensor:
    return x.transpose(1, 2).flatten(2)


class Vmapped(AdaLNBlock):
    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        x = super().forward(x, c)
        return x + torch.vmap(lambda row: F.gelu(row) * row.mean())(x)


class VmappedTwice(AdaLNBlock):
    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        x = super().forward(x, c)
        outer = torch.vmap(torch.vmap(torch.dot, in_dims=(None, 0)), in_dims=(0, None))
        return x + outer(x[0], x[0]).tanh().mean()


class Flexible(AdaLNBlock):
    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        x = super().forward(x, c)
        near = flex_attention(*3 * [heads(x)], score_mod=lambda s, b, h, i, j: s + (i - j) * 0.01)
        return x + merged(near)


class Autocast(AdaLNBlock):
    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            y = super().forward(x, c)
        return y.to(x.dtype)


class AutocastAttention(AdaLNBlock):
    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            added = self.attention(x * c[:, None])
        x = x + added.to(x.dtype)
        with torch.autocast("cpu", enabled=False):
            return x + self.mlp(x)


class Precise(AdaLNBlock):
    """Works in float32 whatever autocast is round the model, as rotary embeddings do."""

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        with torch.autocast("cpu", enabled=False):
            x = x.float() + self.mlp(x.float())
        return super().forward(x, c)


class InPlace(AdaLNBlock):
    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        return super().forward(x, c).mul_(0.5).add_(x)


class ChosenKernel(AdaLNBlock):
    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        x = super().forward(x, c)
        with sdpa_kernel(SDPBackend.MATH):
            return x + merged(F.scaled_dot_product_attention(*3 * [heads(x)]))


class Inference(AdaLNBlock):
    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        with torch.inference_mode():
            return super().forward(x, c)


class Gradients(AdaLNBlock):
    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        x = super().forward(x, c)
        return x + 0.01 * torch.func.grad(lambda v: v.square().sum())(x)


class Denoiser(AdaLNDenoiser):
    def __init__(self, block: Callable[[], nn.Module]) -> None:
        super().__init__(depth=0)
        self.blocks = nn.ModuleList(block() for _ in range(4))


class Around(Denoiser):
    """Autocast round every block, from outside."""

    def forward(self, hidden_states: Tensor, timestep: Tensor) -> Tensor:
        x, conditioning = self.embedding(hidden_states), self.conditioning(timestep)
        for block in self.blocks:
            with torch.autocast("cpu", dtype=torch.bfloat16):
                x = block(x, conditioning)
        return self.head(x, conditioning)


class AroundAll(Denoiser):
    def forward(self, hidden_states: Tensor, timestep: Tensor) -> Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return super().forward(hidden_states, timestep).float()


class Masked(Denoiser):
    """A mask made by vmap before the blocks, as libraries of language models make theirs."""

    def forward(self, hidden_states: Tensor, timestep: Tensor) -> Tensor:
        places = torch.arange(hidden_states.shape[1])
        rows = torch.vmap(torch.ge, in_dims=(None, 0))(places, places)
        return super().forward(hidden_states * rows.float().mean(0)[:, None], timestep)


BLOCKS = (Vmapped, VmappedTwice, Flexible, Autocast, AutocastAttention, ChosenKernel, Inference)
MODELS = {
    **{block.__name__: lambda block=block: Denoiser(block) for block in (*BLOCKS, Gradients)},
    **{model.__name__: lambda model=model: model(AdaLNBlock) for model in (Around, AroundAll)},
    "Masked": lambda: Masked(AdaLNBlock),
}


@pytest.mark.filterwarnings("ignore:flex_attention called without")  # by the oracle
@pytest.mark.parametrize("name", MODELS)
def test_model_that_enters_modes_equals_the_oracle(name: str) -> None:
    model = randomise(MODELS[name]())
    calls = [model.inputs(999.0 - 100 * step, step) for step in range(STEPS)]
    outputs, report = in_session(compiled(model, cached_blocks=2), calls)
    table = tuple(entry.realised for entry in report.entries)
    assert report.cached == 2
    for ours, theirs in zip(tensors(outputs), tensors(oracle(model, table, calls)), strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize("block", [Autocast, Precise, ChosenKernel, InPlace])
def test_autocast_round_a_model_works_once(block: Callable[[], nn.Module]) -> None:
    # Its casts are in the primitive operators already, which would be cast again when they run.
    model = randomise(Denoiser(block))
    calls = [model.inputs(999.0 - 100 * step, step) for step in range(STEPS)]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        outputs, report = in_session(compiled(model, cached_blocks=2), calls)
        table = tuple(entry.realised for entry in report.entries)
        expected = oracle(model, table, calls)
        assert torch.is_autocast_enabled("cpu")  # as it was
    assert report.cached == 2
    for ours, theirs in zip(tensors(outputs), tensors(expected), strict=True):
        assert torch.equal(ours, theirs)


def test_plain_graph_stays_at_torch_level() -> None:
    model = randomise(Denoiser(AdaLNBlock))
    args, kwargs = model.inputs(500.0)
    module, inputs = trace(model, args, kwargs)
    targets: list[Any] = [node.target for node in capture(module, inputs).graph.nodes]
    assert not any(isinstance(target, torch._ops.OpOverload) for target in targets)


def test_weights_under_autocast_are_cast_where_they_are_used() -> None:
    model = randomise(AroundAll(AdaLNBlock))
    args, kwargs = model.inputs(500.0)
    captured = capture(*trace(model, args, kwargs))
    cast = torch.ops.aten._to_copy.default
    casts = captured.graph.find_nodes(op="call_function", target=cast)
    assert casts
    assert all(len(node.users) <= 1 for node in casts if node.args[0].op == "placeholder")
