"""Python floats of a model that change from call to call, such as an adapter's scale."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from driving import compiled
from models import make
from torch import nn

import deltapass
from deltapass.compiler.float_inputs import float_inputs, with_floats


class Scaled(nn.Module):
    """A toy denoiser with a float, as adapters have."""

    def __init__(self) -> None:
        super().__init__()
        self.toy, self.scale = make("adaln"), 1.0

    def forward(self, hidden_states: torch.Tensor, timestep: torch.Tensor) -> Any:
        return self.toy(hidden_states * self.scale, timestep) * (1.0 + self.scale**2)


@pytest.fixture
def scaled() -> Scaled:
    return Scaled()


def graph_of_a_second_value() -> tuple[torch.fx.GraphModule, list[Any]]:
    caught: list[Any] = []

    def catch(gm: torch.fx.GraphModule, inputs: list[Any]) -> Any:
        caught.append((gm, inputs))
        return gm.forward

    model = nn.Linear(4, 4)
    model.scale = 1.0

    def call(x: torch.Tensor) -> torch.Tensor:
        return model(x) * model.scale

    run = torch.compile(call, backend=catch)
    with torch.no_grad():
        for scale in (1.0, 1.5):
            model.scale = scale
            run(torch.zeros(2, 4))
    return caught[-1]


def test_float_inputs_are_found_and_become_literals() -> None:
    gm, inputs = graph_of_a_second_value()
    (at,) = float_inputs(gm, inputs)
    fixed = with_floats(gm, inputs, (at,))
    assert not any(node.target == "item" for node in fixed.graph.nodes)
    with torch.no_grad():
        assert torch.equal(fixed(*inputs)[0], gm(*inputs)[0])
    assert [n.name for n in fixed.graph.nodes if n.op == "placeholder"] == [
        n.name for n in gm.graph.nodes if n.op == "placeholder"
    ]


def test_requests_of_other_scales_are_cached_and_right(scaled: Scaled) -> None:
    model = compiled(scaled, cached_blocks=4)
    args, _ = scaled.toy.inputs(500.0, 1)
    for scale in (1.0, 1.5, 2.0, 1.5):
        scaled.scale = scale
        with torch.no_grad(), deltapass.session(steps=4) as session:
            outputs = []
            for step in range(4):
                session.step(step)
                outputs.append(model(*args))
            assert torch.equal(outputs[0], scaled(*args))
            assert session.report().as_planned
            assert session.report().cached == 2


def test_scale_changed_in_mid_run_refreshes(scaled: Scaled) -> None:
    model = compiled(scaled, cached_blocks=4)
    args, _ = scaled.toy.inputs(500.0, 1)
    with torch.no_grad(), deltapass.session(steps=4) as session:
        for step, scale in enumerate((1.0, 1.5, 1.5, 2.0)):
            session.step(step)
            scaled.scale = scale
            out = model(*args)
            assert torch.equal(out, scaled(*args))
        causes = [entry.cause for entry in session.report().entries]
    graph = deltapass.Cause.GRAPH
    assert causes == [deltapass.Cause.NEW_TRAJECTORY, graph, None, graph]


class TwoParts(nn.Module):
    """Breaks into two graphs, neither of which can be cached."""

    def __init__(self) -> None:
        super().__init__()
        self.toy = make("adaln")

    def forward(self, hidden_states: torch.Tensor, timestep: torch.Tensor) -> Any:
        torch._dynamo.graph_break()
        return self.toy(hidden_states, timestep)


def test_graphs_that_cannot_be_cached_are_in_the_report() -> None:
    model = torch.compile(TwoParts(), backend="deltadit", options={"lowering": "eager"})
    args, _ = make("adaln").inputs(500.0, 1)
    with (
        torch.no_grad(),
        pytest.warns(deltapass.RefusalWarning),
        deltapass.session(steps=4) as session,
    ):
        for step in range(4):
            session.step(step)
            model(*args)
    report = session.report()
    assert not report.as_planned
    assert report.refused == report.calls == 4
