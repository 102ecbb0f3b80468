"""compiler/capture.py: one functional graph of static shapes, and what its inputs are."""

from __future__ import annotations

import functools
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import models
import pytest
import torch
from raising import raises_in_compile
from torch import Tensor, fx, nn

from deltapass.compiler.capture import capture
from deltapass.compiler.fragments import refuse_fragment
from deltapass.compiler.inputs import data_positions
from deltapass.compiler.tracing import trace
from deltapass.errors import (
    GraphBreakError,
    MixedDevicesError,
    MutationError,
    RefusalWarning,
    UnsupportedGraphError,
)
from deltapass.graph.program import Captured, Role, TensorSpec


def captured_by_fx(model: Callable[..., Any], *arguments: Any) -> Captured:
    return capture(fx.symbolic_trace(model), arguments)


@functools.cache
def toy(name: str) -> models.Denoiser:
    return models.make(name, depth=2)


@functools.cache
def traced(name: str) -> tuple[fx.GraphModule, tuple[Any, ...]]:
    args, kwargs = toy(name).inputs(500.0)
    return trace(toy(name), args, kwargs)


@functools.cache
def captured_toy(name: str) -> Captured:
    return capture(*traced(name))


def roles(captured: Captured) -> dict[str, Role]:
    return {i.name: i.role for i in captured.inputs if i.role is not Role.WEIGHT}


def targets(captured: Captured) -> list[Any]:
    return [node.target for node in captured.module.graph.nodes if node.op.startswith("call")]


# ---- a graph of static shapes ------------------------------------------------------------------


@pytest.mark.parametrize("name", ["adaln", "in_place", "cross_attention"])
def test_captured_graph_equals_the_model_bit_for_bit(name: str) -> None:
    args, kwargs = toy(name).inputs(500.0)
    (output,) = captured_toy(name).module(*traced(name)[1])
    assert torch.equal(output, toy(name)(*args, **kwargs))


def test_every_value_has_a_spec() -> None:
    captured = captured_toy("adaln")
    nodes = [node for node in captured.module.graph.nodes if node.op != "output"]
    assert [node.name for node in nodes if not captured.values.get(node.name)] == []


def test_specs_are_those_of_the_real_values() -> None:
    captured = captured_toy("cross_attention")
    wrong = []

    class Checker(fx.Interpreter):
        def run_node(self, n: fx.Node) -> Any:
            value = super().run_node(n)
            if torch.is_tensor(value) and captured.spec(n) != TensorSpec.of(value):
                wrong.append(n.name)
            return value

    Checker(captured.module).run(*traced("cross_attention")[1])
    assert wrong == []


def test_numbers_become_literals() -> None:
    captured = captured_by_fx(lambda x: x.reshape(x.shape[0] * 2, -1), torch.ones(3, 4))
    (reshape,) = [node for node in captured.module.graph.nodes if node.op.startswith("call")]
    assert reshape.args[1:] == (6, -1)


def test_number_inputs_become_literals() -> None:
    captured = captured_by_fx(lambda n, x: x.reshape(n, -1), 6, torch.ones(3, 4))
    (reshape,) = [node for node in captured.module.graph.nodes if node.op.startswith("call")]
    assert reshape.args[1:] == (6, -1)


def test_graph_that_reads_a_scalar_is_refused() -> None:
    with pytest.raises(UnsupportedGraphError):
        captured_by_fx(lambda x, eps: x + eps.item(), torch.ones(3), torch.tensor(1e-5))


def test_number_inputs_stay_inputs() -> None:
    captured = captured_by_fx(lambda n, x: x.reshape(n, -1), 6, torch.ones(3, 4))
    assert [(i.name, i.role, i.spec is None) for i in captured.inputs] == [
        ("n", Role.SIZE, True),
        ("x", Role.SAMPLE, False),
    ]


def test_tensor_constants_become_inputs() -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table = torch.arange(3.0)

        def forward(self, x: Tensor) -> Tensor:
            return x + self.table

    model = Model()
    captured = captured_by_fx(model, torch.ones(3))
    ops = [node.op for node in captured.module.graph.nodes]
    assert ops == ["placeholder", "placeholder", "call_function", "output"]
    assert [i.name for i in captured.inputs] == ["x"]
    (constant,) = captured.constants.values()
    assert constant.data_ptr() == model.table.data_ptr()


def test_tracing_context_is_left_as_it_was() -> None:
    with torch.enable_grad():
        captured_by_fx(lambda x: x.sin(), torch.ones(3))
        assert torch.is_grad_enabled()


def test_given_graph_is_not_changed() -> None:
    module, inputs = traced("in_place")
    before = str(module.graph)
    capture(module, inputs)
    assert str(module.graph) == before


def test_values_are_never_computed() -> None:
    # A terabyte would not fit: capture works on tensors without data.
    captured = captured_by_fx(lambda x: x.expand(2**19, 2**19) * 2.0, torch.ones(1))
    assert captured.values["mul"].nbytes == 2**40


# ---- in-place operators ------------------------------------------------------------------------


def in_place(captured: Captured) -> list[str]:
    named = [getattr(target, "__name__", str(target)) for target in targets(captured)]
    return [name for name in named if name.split(".")[0].endswith("_") or name.startswith("i")]


def test_functional_graph_is_kept_as_it_is() -> None:
    module, _ = traced("adaln")
    given = [node.target for node in module.graph.nodes if node.op.startswith("call")]
    assert [t for t in targets(captured_toy("adaln")) if t in given] == targets(
        captured_toy("adaln")
    )


def test_in_place_operators_become_out_of_place() -> None:
    module, _ = traced("in_place")
    assert any(node.target == "add_" for node in module.graph.nodes)
    assert in_place(captured_toy("in_place")) == []


def test_module_stack_outlives_functionalisation() -> None:
    nodes = captured_toy("in_place").module.graph.nodes
    paths = {path for n in nodes for path, _ in (n.meta.get("nn_module_stack") or {}).values()}
    assert any("blocks" in path and "attention" in path for path in paths)


def test_roles_outlive_functionalisation() -> None:
    assert roles(captured_toy("in_place")) == roles(captured_toy("adaln"))


def test_write_into_part_of_a_fresh_tensor_becomes_functional() -> None:
    def model(x: Tensor) -> Tensor:
        y = x * 2.0
        y[:, 1:].add_(1.0)
        return y

    captured = captured_by_fx(model, torch.ones(2, 3))
    (output,) = (captured.module(torch.ones(2, 3)),)
    assert in_place(captured) == []
    assert torch.equal(output[0] if isinstance(output, tuple) else output, model(torch.ones(2, 3)))


def test_write_into_an_input_is_refused() -> None:
    with pytest.raises(MutationError, match=r"'add_' changes a tensor.*an input of the model"):
        captured_by_fx(lambda x: x.add_(1.0) * 2.0, torch.ones(3))


def test_write_into_a_view_of_an_input_is_refused() -> None:
    with pytest.raises(MutationError, match="an input of the model"):
        captured_by_fx(lambda x: x[0].mul_(2.0) + 1.0, torch.ones(3, 2))


def test_write_into_a_weight_is_refused() -> None:
    class Counter(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("calls", torch.zeros(3))

        def forward(self, x: Tensor) -> Tensor:
            self.calls.add_(1.0)
            return x + self.calls

    module, inputs = trace(Counter(), (torch.ones(3),), {})
    with pytest.raises(MutationError, match="an input of the model"):
        capture(module, inputs)


# ---- devices -----------------------------------------------------------------------------------


def test_tensors_on_several_devices_are_refused() -> None:
    first, second = models.AdaLNBlock(), models.AdaLNBlock().to("meta")

    def model(x: Tensor, c: Tensor, y: Tensor, d: Tensor) -> tuple[Tensor, Tensor]:
        return first(x, c), second(y, d)

    x, c = torch.ones(2, 4, models.D), torch.ones(2, models.D)
    module, inputs = trace(model, (x, c, x.to("meta"), c.to("meta")), {})
    with pytest.raises(MixedDevicesError, match="several devices: cpu, meta"):
        capture(module, inputs)


def test_scalar_on_the_host_may_meet_another_device() -> None:
    captured = captured_by_fx(lambda x, s: x * s, torch.ones(3, device="meta"), torch.tensor(2.0))
    assert captured.values["mul"].device.type == "meta"


# ---- what the inputs are -----------------------------------------------------------------------


def test_roles_of_one_stream() -> None:
    assert roles(captured_toy("adaln")) == {
        "hidden_states": Role.SAMPLE,
        "timestep": Role.TIMESTEP,
    }


def test_roles_with_text() -> None:
    assert roles(captured_toy("cross_attention")) == {
        "hidden_states": Role.SAMPLE,
        "timestep": Role.TIMESTEP,
        "encoder_hidden_states": Role.DATA,
    }


def test_parameters_and_buffers_are_weights() -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(4, 4)
            self.register_buffer("table", torch.ones(4))

        def forward(self, hidden_states: Tensor, mask: Tensor) -> Tensor:
            return self.linear(hidden_states) * self.table * mask

    module, inputs = trace(Model(), (torch.ones(2, 4), torch.ones(4)), {})
    captured = capture(module, inputs)
    weights = [i.spec.shape for i in captured.inputs if i.role is Role.WEIGHT and i.spec]
    assert sorted(weights) == [(4,), (4,), (4, 4)]
    assert roles(captured) == {"hidden_states": Role.SAMPLE, "mask": Role.DATA}


def test_a_data_input_may_be_called_parameters() -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(4, 4)

        def forward(self, hidden_states: Tensor, style_parameters: Tensor) -> Tensor:
            return self.linear(hidden_states) * style_parameters

    module, inputs = trace(Model(), (torch.ones(2, 4), torch.ones(4)), {})
    assert roles(capture(module, inputs))["style_parameters"] is Role.DATA
    positions = data_positions(module, inputs)
    assert [tuple(inputs[at].shape) for at in positions] == [(2, 4), (4,)]


@pytest.mark.parametrize("name", ["timestep", "t", "sigma", "noise_level"])
def test_timestep_is_known_by_common_names(name: str) -> None:
    class Model(nn.Module):
        def forward(self, hidden_states: Tensor, **kwargs: Tensor) -> Tensor:
            return hidden_states * kwargs[name]

    module, inputs = trace(Model(), (torch.ones(2, 4),), {name: torch.ones(1)})
    assert roles(capture(module, inputs))[name] is Role.TIMESTEP


def test_sample_may_have_other_channels_than_the_output() -> None:
    # A model that predicts the variance too gives twice as many channels.
    captured = captured_by_fx(
        lambda text, latent: torch.cat([latent, latent], dim=1),
        torch.ones(2, 5, 4),
        torch.ones(2, 4, 8, 8),
    )
    assert roles(captured) == {"text": Role.DATA, "latent": Role.SAMPLE}


# ---- fragments ---------------------------------------------------------------------------------


class Broken(models.AdaLNDenoiser):
    """Speaks between two blocks, which breaks Dynamo's graph."""

    def forward(self, hidden_states: Tensor, timestep: Tensor) -> Tensor:
        x, conditioning = self.embedding(hidden_states), self.conditioning(timestep)
        x = self.blocks[0](x, conditioning)
        torch._dynamo.graph_break()
        return self.head(self.blocks[1](x, conditioning), conditioning)


def broken() -> Broken:
    model = Broken(depth=2)
    models.randomise(model)
    return model


def backend(model: nn.Module, **options: Any) -> Callable[..., Any]:
    return torch.compile(model, backend="deltadit", options={"lowering": "eager", **options})


@torch.no_grad()
def test_broken_graph_is_refused() -> None:
    args, _ = broken().inputs(500.0)
    with raises_in_compile(GraphBreakError, match="graph is broken into pieces"):
        backend(broken(), strict=True)(*args)


@torch.no_grad()
def test_both_pieces_of_a_broken_graph_run_as_they_are() -> None:
    model = broken()
    args, _ = model.inputs(500.0)
    with pytest.warns(RefusalWarning, match="graph is broken into pieces") as caught:
        output = backend(model)(*args)
    assert torch.equal(output, model(*args))
    pieces = [str(w.message) for w in caught if w.category is RefusalWarning]
    assert len(pieces) == 2
    assert "this one resumes forward" in pieces[1]


@torch.no_grad()
def test_print_between_the_layers_is_a_break() -> None:
    class Talkative(models.AdaLNDenoiser):
        def forward(self, hidden_states: Tensor, timestep: Tensor) -> Tensor:
            x = self.embedding(hidden_states)
            print("embedded", flush=True)  # noqa: T201
            conditioning = self.conditioning(timestep)
            for block in self.blocks:
                x = block(x, conditioning)
            return self.head(x, conditioning)

    model = Talkative(depth=2)
    args, _ = model.inputs(500.0)
    with raises_in_compile(GraphBreakError, match="broken into pieces: .* builtin"):
        backend(model, strict=True)(*args)


def test_whole_graph_is_no_fragment() -> None:
    module, _ = traced("adaln")
    refuse_fragment(module)
    module.compile_subgraph_reason = SimpleNamespace(graph_break=False, reason="return_value")
    refuse_fragment(module)


def test_untraceable_model_gives_our_error() -> None:
    args, _ = broken().inputs(500.0)
    with pytest.raises(GraphBreakError):
        trace(broken(), args, {})


def test_capture_keeps_no_module_of_the_tracer() -> None:
    graph = fx.Graph()
    graph.output(graph.call_function(torch.sin, (graph.placeholder("x"),)))
    module = fx.GraphModule(nn.Module(), graph)
    captured = capture(module, [torch.ones(2)])
    assert captured.root is not module
    assert not list(captured.root.children())
