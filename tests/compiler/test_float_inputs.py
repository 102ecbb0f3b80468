"""Python floats of a model that change from call to call, such as an adapter's scale."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from deltapass.backends.eager import EagerLowering
from driving import compiled, in_session, sampled
from models import make, randomise
from reference import DeltaCacheReference
from torch import nn
from torch._dynamo.utils import counters

import deltapass
from deltapass.compiler.capture import capture
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


def test_floats_stay_inputs_of_what_reads_them() -> None:
    gm, inputs = graph_of_a_second_value()
    (at,) = float_inputs(gm, inputs)
    captured = capture(gm, inputs)
    reading = captured.graph.find_nodes(op="placeholder")[at]
    assert [node.target for node in reading.users] == ["item"]
    inputs[at] = torch.tensor(2.5, dtype=torch.float64)
    with torch.no_grad():
        assert torch.equal(captured.module(*inputs)[0], gm(*inputs)[0])


def test_floats_become_literals_where_they_must() -> None:
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
    cause = deltapass.Cause
    assert causes == [cause.NEW_TRAJECTORY, cause.GRAPH, None, cause.CONDITIONING]


class Adapted(nn.Module):
    """Every block has an adapter, whose scale all share."""

    def __init__(self) -> None:
        super().__init__()
        self.toy, self.scale = make("adaln", depth=4), 1.0
        self.adapters = nn.ModuleList(nn.Linear(32, 32) for _ in range(4))
        randomise(self.adapters)

    def forward(self, hidden_states: torch.Tensor, timestep: torch.Tensor) -> Any:
        x, conditioning = self.toy.embedding(hidden_states), self.toy.conditioning(timestep)
        for block, adapter in zip(self.toy.blocks, self.adapters, strict=True):
            x = block(x, conditioning)
            x = x + (self.scale * 0.5 + 1.0) * adapter(x)
        return self.toy.head(x, conditioning)


def test_scale_of_every_step_compiles_as_often_as_plain_and_is_named_once() -> None:
    counts, lowered = [], Lowered()
    for backend, options in (("eager", None), ("deltadit", {"lowering": "eager"})):
        torch._dynamo.reset()
        counters.clear()
        model = Adapted()
        with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            patch.setattr(EagerLowering, "lower", lambda _, body: lowered.lower(body))
            run = torch.compile(model, backend=backend, fullgraph=True, options=options)
            calls = sampled([model.toy.inputs(999.0 - 50 * step, step) for step in range(12)])
            for step, (args, _) in enumerate(calls):
                model.scale = 1.0 - step / 16
                with torch.no_grad():
                    assert torch.equal(run(*args), model(*args))
        counts.append(counters["stats"]["unique_graphs"])
    assert counts == [2, 2]
    bodies = [body.name for body in lowered.bodies]
    assert bodies.count("block_0") == 2  # of the first value, and of all others
    said = [str(w.message) for w in caught if w.category is deltapass.RefusalWarning]
    assert len(said) == 1
    assert "self_scale" in said[0]


class Lowered:
    """Notes which bodies are lowered."""

    def __init__(self) -> None:
        self.bodies: list[Any] = []

    def lower(self, body: Any) -> Any:
        self.bodies.append(body)
        return body.module.forward


class ScaledInPlace(Scaled):
    """In-place operators are rewritten, for which the scale must be a number."""

    def __init__(self) -> None:
        super().__init__()
        self.toy = make("in_place")


@pytest.mark.parametrize("kind", [Scaled, ScaledInPlace])
def test_adapters_of_every_kind_equal_the_oracle(kind: type[Scaled]) -> None:
    model = kind()
    run = compiled(model, cached_blocks=4)
    for scale in (1.0, 1.5, 0.5):
        model.scale = scale
        calls = [model.toy.inputs(999.0 - 100 * step, step) for step in range(4)]
        outputs, report = in_session(run, calls)
        assert report.cached == 2
        table = tuple(entry.realised for entry in report.entries)
        with torch.no_grad():
            blocks = model.toy.blocks
            theirs = DeltaCacheReference(model, blocks, model.toy.streams).run(table, calls)
        assert all(map(torch.equal, outputs, theirs))


class Resized(Scaled):
    """A float that makes a shape: Dynamo makes a graph for each value of it."""

    def forward(self, hidden_states: torch.Tensor, timestep: torch.Tensor) -> Any:
        steps = torch.arange(0.0, self.scale * 4, 1.0).mean()
        return self.toy(hidden_states * steps, timestep)


def test_float_that_makes_a_shape_stays_right() -> None:
    model = Resized()
    run = compiled(model, cached_blocks=4)
    args, _ = model.toy.inputs(500.0, 1)
    for scale in (1.0, 1.5, 2.0):
        model.scale = scale
        with torch.no_grad(), deltapass.session(steps=2) as session:
            session.step(0)
            assert torch.equal(run(*args), model(*args))


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


class Told(nn.Module):
    """Takes its timestep as a Python number."""

    def __init__(self) -> None:
        super().__init__()
        self.toy = make("adaln", depth=4)

    def forward(self, hidden_states: torch.Tensor, timestep: float) -> Any:
        return self.toy(hidden_states, torch.full((len(hidden_states),), timestep))


@pytest.mark.parametrize("kind", [float, int])
def test_timestep_as_a_number_compiles_as_often_as_plain(kind: type) -> None:
    counts = []
    for backend, options in (
        ("eager", None),
        ("deltadit", {"lowering": "eager", "schedule": "none"}),
    ):
        torch._dynamo.reset()
        counters.clear()
        model = Told()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", deltapass.RefusalWarning)
            run = torch.compile(model, backend=backend, options=options)
            for step in range(8):
                args, _ = model.toy.inputs(0.0, step)
                with torch.no_grad():
                    assert torch.equal(run(args[0], kind(900 - step)), model(args[0], 900 - step))
        counts.append(counters["stats"]["unique_graphs"])
    assert counts[0] == counts[1] <= 2


def test_timestep_as_a_float_is_cached_in_a_session() -> None:
    model = Told()
    calls = [((model.toy.inputs(0.0, step)[0][0], 900.0 - step), {}) for step in range(8)]
    outputs, report = in_session(compiled(model, cached_blocks=2), calls)
    assert report.cached >= 2
    table = tuple(entry.realised for entry in report.entries)
    reference = DeltaCacheReference(model, model.toy.blocks, model.toy.streams)
    assert all(map(torch.equal, outputs, reference.run(table, calls)))
