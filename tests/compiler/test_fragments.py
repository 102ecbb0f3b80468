"""compiler/fragments.py: pieces of a broken graph and blocks compiled alone are told apart."""

from __future__ import annotations

import inspect
import re
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import models
import pytest
import torch
from models import AdaLNBlock, AdaLNDenoiser, Denoiser
from raising import raises_in_compile
from torch import Tensor, fx, nn

import deltapass
from deltapass.compiler.fragments import refuse_fragment
from deltapass.errors import BlockAloneError, GraphBreakError, UnsupportedGraphError

Refusals = list[UnsupportedGraphError | None]


def refusals_of(model: Callable[..., Any], call: Callable[[], Any] | None = None) -> Refusals:
    """What is found of every graph that Dynamo makes of a call, in order."""
    found: Refusals = []

    def backend(gm: fx.GraphModule, _: Sequence[Any]) -> Callable[..., Any]:
        try:
            refuse_fragment(gm)
        except UnsupportedGraphError as error:
            found.append(error)
        else:
            found.append(None)
        return gm.forward

    compiled = torch.compile(model, backend=backend)
    args, kwargs = AdaLNDenoiser(0).inputs(500.0)
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        (call or (lambda: compiled(*args, **kwargs)))()
    return found


def line_of(function: Callable[..., Any], text: str) -> str:
    """file:line of the first line of a function that holds a text."""
    lines, start = inspect.getsourcelines(function)
    offset = next(at for at, line in enumerate(lines) if text in line)
    return f"{inspect.getsourcefile(function)}:{start + offset}"


@torch._dynamo.disable
def logged(x: Tensor) -> Tensor:
    return x


class BreaksInLoop(AdaLNDenoiser):
    def forward(self, hidden_states: Tensor, timestep: Tensor) -> Tensor:
        x, conditioning = self.embedding(hidden_states), self.conditioning(timestep)
        for block in self.blocks:
            x = block(x, conditioning)
            x = logged(x)
        return self.head(x, conditioning)


class BreaksInBlock(AdaLNBlock):
    def forward(self, hidden_states: Tensor, conditioning: Tensor) -> Tensor:
        x = super().forward(hidden_states, conditioning)
        torch._dynamo.graph_break()
        return x * 1.5


class BreaksAfterLoop(AdaLNDenoiser):
    def forward(self, hidden_states: Tensor, timestep: Tensor) -> Tensor:
        x, conditioning = self.embedding(hidden_states), self.conditioning(timestep)
        for block in self.blocks:
            x = block(x, conditioning)
        torch._dynamo.graph_break()
        return self.head(x, conditioning)


class BreaksInHelper(AdaLNDenoiser):
    def forward(self, hidden_states: Tensor, timestep: Tensor) -> Tensor:
        x, conditioning = self.embedding(hidden_states), self.conditioning(timestep)
        for block in self.blocks:
            x = self.run(block, x, conditioning)
        return self.head(x, conditioning)

    def run(self, block: nn.Module, x: Tensor, conditioning: Tensor) -> Tensor:
        x = block(x, conditioning)
        print(end="")  # noqa: T201
        return block(x, conditioning)


def with_blocks(kind: type[nn.Module], depth: int) -> Denoiser:
    model = AdaLNDenoiser(0)
    model.blocks = nn.ModuleList(kind() for _ in range(depth))
    return models.randomise(model)


BROKEN = {
    "in loop": (lambda: BreaksInLoop(3), BreaksInLoop.forward, "logged(x)"),
    "in block": (lambda: with_blocks(BreaksInBlock, 3), BreaksInBlock.forward, "graph_break"),
    "after loop": (lambda: BreaksAfterLoop(3), BreaksAfterLoop.forward, "graph_break"),
    "in helper": (lambda: BreaksInHelper(2), BreaksInHelper.run, "print(end"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_every_piece_of_a_broken_graph_is_refused_and_the_place_is_quoted(name: str) -> None:
    make, function, text = BROKEN[name]
    found = refusals_of(make())
    assert len(found) > 1
    assert all(isinstance(error, GraphBreakError) for error in found)
    assert any(line_of(function, text) in str(error) for error in found)
    assert not any("per_step" in str(error) for error in found)


def test_one_warning_a_piece_and_nothing_is_cached() -> None:
    model = models.randomise(BreaksInLoop(3))
    args, kwargs = model.inputs(500.0)
    broken = torch.compile(model, backend="deltadit", options={"lowering": "eager"})
    place = re.escape(line_of(BreaksInLoop.forward, "logged(x)"))
    with torch.no_grad(), pytest.warns(deltapass.RefusalWarning) as caught:
        for _ in range(3):
            assert torch.equal(broken(*args, **kwargs), model(*args, **kwargs))
    assert all(re.search(f"broken into pieces.*{place}", str(each.message)) for each in caught)


def test_explain_quotes_the_place_too() -> None:
    args, kwargs = AdaLNDenoiser(0).inputs(500.0)
    report = deltapass.explain(BreaksInLoop(3), *args, **kwargs)
    assert report.refusal is not None
    assert line_of(BreaksInLoop.forward, "logged(x)") in report.refusal


@pytest.mark.parametrize("whole", ["model", "forward", "method", "function", "no_grad"])
def test_whole_models_are_no_pieces(whole: str) -> None:
    model = models.randomise(AdaLNDenoiser(3))
    args, kwargs = model.inputs(500.0)
    given = {
        "model": model,
        "forward": model.forward,
        "function": lambda x, timestep: model(x, timestep=timestep),
        "no_grad": torch.no_grad()(model.forward),
    }
    if whole != "method":
        assert refusals_of(given[whole]) == [None]
        return
    found: Refusals = []
    model.compile(backend=lambda gm, _: found.append(refuse_fragment(gm)) or gm.forward)
    with torch.no_grad():
        model(*args, **kwargs)
    assert found == [None]


def test_a_whole_model_in_an_uncompiled_loop_is_no_piece() -> None:
    model = models.randomise(AdaLNDenoiser(3))

    def sample(x: Tensor, timestep: Tensor) -> Tensor:
        for _ in range(2):
            x = model(x, timestep)
            x = logged(x)
        return x

    assert refusals_of(sample) == [None]


class Sampler(nn.Module):
    """A module round the denoiser, which calls it at every step."""

    def __init__(self, *denoisers: nn.Module) -> None:
        super().__init__()
        self.model = denoisers[0]
        self.guide = denoisers[-1]

    def forward(self, x: Tensor, timestep: Tensor) -> Tensor:
        return self.model(x, timestep) + self.guide(x, timestep)


@pytest.mark.parametrize("count", [1, 2])
def test_denoisers_within_another_module_are_no_blocks(count: int) -> None:
    denoisers = [models.randomise(AdaLNDenoiser(2), seed) for seed in range(count)]
    sampler = Sampler(*denoisers)
    found: Refusals = []
    for denoiser in denoisers:
        denoiser.compile(backend=lambda gm, _: found.append(refuse_fragment(gm)) or gm.forward)
    with torch.no_grad():
        sampler(*denoisers[0].inputs(500.0)[0])
    assert set(found) == {None}


# ---- blocks compiled alone ---------------------------------------------------------------------


@pytest.mark.parametrize("depth", [2, 4])
@pytest.mark.parametrize("how", ["compile()", "torch.compile"])
def test_blocks_compiled_alone_are_refused_by_name(depth: int, how: str) -> None:
    model = models.randomise(AdaLNDenoiser(depth))
    args, kwargs = model.inputs(500.0)
    options = {"lowering": "eager", "strict": True}
    for index, block in enumerate(model.blocks):
        if how == "compile()":
            block.compile(backend="deltadit", options=options)
        else:
            model.blocks[index] = torch.compile(block, backend="deltadit", options=options)
    says = rf"blocks\.0\S* \(AdaLNBlock\) was compiled alone, one of {depth} such modules"
    with torch.no_grad(), raises_in_compile(BlockAloneError, match=says) as caught:
        model(*args, **kwargs)
    assert "Compile the whole model" in caught.value.remedy


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.mlp = models.mlp()

    def forward(self, x: Tensor) -> Tensor:
        return x + self.mlp(x)


class NestedBlock(nn.Module):
    """A block that is a small stack itself, so that structure alone does not tell."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = Residual(), Residual()

    def forward(self, hidden_states: Tensor, conditioning: Tensor) -> Tensor:
        return self.two(self.one(hidden_states + conditioning[:, None]))


def test_a_block_that_holds_a_stack_itself_runs_in_full() -> None:
    model = with_blocks(NestedBlock, 3)
    args, kwargs = model.inputs(500.0)
    plain = model(*args, **kwargs)
    for block in model.blocks:
        block.compile(backend="deltadit", options={"lowering": "eager"})
    alone = pytest.warns(deltapass.RefusalWarning, match="compiled alone")
    with torch.no_grad(), alone, deltapass.session(steps=4) as session:
        for step in range(4):
            session.step(step)
            assert torch.equal(model(*args, **kwargs), plain)
