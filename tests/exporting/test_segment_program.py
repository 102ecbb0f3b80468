"""Segments as torch.export programs: weights by their names, varying sizes written out."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
import torch
from models import C, Denoiser, make, noise
from torch import fx

from deltapass.bundles.formats import SegmentProgram
from deltapass.compiler.blocks import find_blocks
from deltapass.compiler.outline import outline
from deltapass.exporting.segment_program import Values, segment_program
from deltapass.exporting.segments import segmented
from deltapass.exporting.trace import Exported, export_graph
from deltapass.graph.program import Body, Call, Macs, TensorSpec
from deltapass.graph.sizes import Size
from deltapass.schedule.rules import Span

aten = torch.ops.aten
Tensors = Mapping[str, torch.Tensor]


def body(graph: fx.Graph, given: Tensors, root: torch.nn.Module | None = None) -> Body:
    module = fx.GraphModule(root or torch.nn.Module(), graph)
    return Body(
        name="segment",
        module=module,
        key=("segment",),
        inputs=tuple(map(TensorSpec.of, given.values())),
        outputs=(),
        macs=Macs(1.0, 2.0),
    )


def made(
    graph: fx.Graph, given: Tensors, shapes: Mapping[str, Any], weights: Tensors | None = None
) -> SegmentProgram:
    """The segment of a graph whose placeholders are all of `given` and give `out`."""
    held = weights or {}
    module = fx.GraphModule(torch.nn.Module(), graph)
    out = module(*given.values())[0]
    call = Call(label="segment", body=body(graph, given), inputs=tuple(given), outputs=("out",))
    values = Values(
        weights={name: f"inner.{name}" for name in held},
        tensors={f"inner.{name}": tensor for name, tensor in held.items()},
        example={**given, "out": out},
        shapes=shapes,
    )
    return segment_program(call, values)


def run(segment: SegmentProgram, *arguments: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        result: torch.Tensor = segment.program.module()(*arguments)[0]
    return result


# ---- sizes -------------------------------------------------------------------------------------


def flattened(size: Any) -> fx.Graph:
    """x (rows, columns) as one row of `size` numbers."""
    graph = fx.Graph()
    x = graph.placeholder("x")
    graph.output((graph.call_function(aten.view.default, (x, [size])),))
    return graph


@pytest.mark.parametrize(
    ("formula", "shape"),
    [
        ("rows * columns", ("rows", "columns")),
        ("columns * rows", ("rows", "columns")),
        ("rows * 6", ("rows", 6)),
    ],
)
def test_a_size_is_worked_out_from_the_inputs(formula: str, shape: tuple[Any, ...]) -> None:
    x = noise(0, 4, 6)
    shapes = {"x": shape, "out": (formula,)}
    segment = made(flattened(Size(24, formula)), {"x": x}, shapes)
    for rows in (2, 4, 7):
        other = noise(1, rows, 6)
        assert torch.equal(run(segment, other), other.flatten())
    assert segment.shapes == shapes and segment.macs == Macs(1.0, 2.0)
    assert torch.equal(segment.example[0], x)


def test_sizes_inside_lists_slices_and_keywords_are_written_out() -> None:
    graph = fx.Graph()
    x = graph.placeholder("x")
    half = Size(4, "rows // 2")
    upper = graph.call_function(aten.slice.Tensor, (x, 0, 0, half))
    ones = graph.call_function(
        aten.full.default, ([half, 3], 1.0), {"dtype": torch.float32, "device": x_device()}
    )
    graph.output((graph.call_function(aten.add.Tensor, (upper, ones)),))
    shapes = {"x": ("rows", 3), "out": ("rows // 2", 3)}
    segment = made(graph, {"x": noise(0, 8, 3)}, shapes)
    for rows in (6, 8, 12):
        given = noise(2, rows, 3)
        assert torch.equal(run(segment, given), given[: rows // 2] + 1)


def x_device() -> torch.device:
    return torch.device("cpu")


def test_a_size_that_an_input_has_is_taken_from_it_though_its_parts_are_unknown() -> None:
    graph = fx.Graph()
    x = graph.placeholder("x")
    size = Size(6, "height // 2 * (width // 2)")
    graph.output((graph.call_function(aten.view.default, (x, [1, size])),))
    shapes = {"x": (size.formula,), "out": (1, size.formula)}
    segment = made(graph, {"x": noise(0, 6)}, shapes)
    for length in (4, 6, 15):
        assert run(segment, noise(3, length)).shape == (1, length)


def test_without_dimensions_every_size_is_fixed() -> None:
    segment = made(flattened(24), {"x": noise(0, 4, 6)}, {})
    sizes = [n.meta["val"].shape for n in segment.program.graph.nodes if n.op == "placeholder"]
    assert [tuple(size) for size in sizes] == [(4, 6)] and segment.shapes == {}
    assert all(isinstance(size, int) for shape in sizes for size in shape)


# ---- weights and constants ---------------------------------------------------------------------


def scaled() -> fx.Graph:
    graph = fx.Graph()
    x, weight = graph.placeholder("x"), graph.placeholder("weight")
    graph.output((graph.call_function(aten.mul.Tensor, (x, weight)),))
    return graph


def test_weights_lie_under_their_names_in_the_models_own_memory() -> None:
    weight = noise(5, 3)
    segment = made(scaled(), {"x": noise(0, 2, 3), "weight": weight}, {}, {"weight": weight})
    assert segment.inputs == ("x",) and segment.outputs == ("out",)
    held = segment.program.state_dict
    assert list(held) == ["inner.weight"]
    assert held["inner.weight"].data_ptr() == weight.data_ptr()
    x = noise(4, 2, 3)
    assert torch.equal(run(segment, x), x * weight)


def test_what_depends_on_nothing_is_folded_by_torch() -> None:
    graph = fx.Graph()
    x = graph.placeholder("x")
    steps = graph.call_function(aten.arange.default, (3,), {"dtype": torch.float32})
    rate = graph.call_function(aten.exp.default, (steps,))
    graph.output((graph.call_function(aten.mul.Tensor, (x, rate)),))
    segment = made(graph, {"x": noise(0, 2, 3)}, {})
    targets = {str(node.target) for node in segment.program.graph.nodes}
    assert not targets & {"aten.arange.default", "aten.exp.default"}
    x_now = noise(1, 2, 3)
    assert torch.equal(run(segment, x_now), x_now * torch.arange(3).float().exp())


def test_a_result_may_be_a_constant() -> None:
    graph = fx.Graph()
    graph.placeholder("x")
    graph.output((graph.call_function(aten.arange.default, (3,)),))
    segment = made(graph, {"x": noise(0, 2)}, {})
    assert run(segment, noise(1, 2)).tolist() == [0, 1, 2]


def test_the_callers_tensors_are_not_written_to() -> None:
    weight, x = noise(5, 3), noise(0, 2, 3)
    before = weight.clone(), x.clone()
    segment = made(scaled(), {"x": x, "weight": weight}, {}, {"weight": weight})
    segment.values["x"].add_(0)
    run(segment, x)
    assert torch.equal(weight, before[0]) and torch.equal(x, before[1])


# ---- whole models ------------------------------------------------------------------------------


def programs_of(model: Denoiser, exported: Exported) -> list[tuple[Call, SegmentProgram]]:
    """All segments of a model cut around blocks 1 and 2, with the example's values."""
    found = outline(exported.captured, find_blocks(exported.captured))
    full = segmented(found, [Span(1, 3)], exported.shapes)
    constants = exported.captured.constants
    weights = {**exported.weights, **{name: name for name in constants}}
    tensors = {**exported.tensors, **constants}
    example = {**exported.example, **{name: tensors[path] for name, path in weights.items()}}
    for call in full.calls:
        with torch.no_grad():
            results = call.body.module.forward(*(example[name] for name in call.inputs))
        example.update(zip(call.outputs, results, strict=True))
    values = Values(weights=weights, tensors=tensors, example=example, shapes=exported.shapes)
    return [(call, segment_program(call, values)) for call in full.calls]


@pytest.fixture(scope="module", params=["adaln", "two_stream"])
def cut(request: pytest.FixtureRequest) -> tuple[Denoiser, list[tuple[Call, SegmentProgram]]]:
    """A model and its segments, for a batch of 1 to 8."""
    model = make(request.param, depth=4)
    args, kwargs = model.inputs(0.5)
    return model, programs_of(model, export_graph(model, args, kwargs, batch=(1, 8)))


@pytest.mark.parametrize("batch", [1, 3, 8])
def test_segments_run_one_after_another_are_the_model_at_any_batch(
    cut: tuple[Denoiser, list[tuple[Call, SegmentProgram]]], batch: int
) -> None:
    model, segments = cut
    args, kwargs = model.inputs(0.5)
    names = dict(zip(("hidden_states", "timestep"), args, strict=True)) | kwargs
    inputs = {n: noise(at, batch, *t.shape[1:]) for at, (n, t) in enumerate(names.items())}
    values = dict(inputs)
    for call, segment in segments:
        with torch.no_grad():
            given = segment.program.module()(*(values[name] for name in segment.inputs))
        values.update(zip(call.outputs, given, strict=True))
    with torch.no_grad():
        wanted = model(**inputs)
    result = values[segments[-1][1].outputs[0]]
    assert result.shape == (batch, 16, C)
    assert torch.allclose(result, wanted, atol=1e-5)


def test_weights_of_a_model_keep_their_names(
    cut: tuple[Denoiser, list[tuple[Call, SegmentProgram]]],
) -> None:
    model, segments = cut
    held = [name for _, segment in segments for name in segment.program.state_dict]
    own = [name for name in held if not name.startswith("constant_")]
    assert sorted(own) == sorted(dict(model.named_parameters()))
