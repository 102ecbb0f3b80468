"""compiler/outline.py: a graph as calls of few bodies; running the calls is running the graph."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import models
import pytest
import torch
from torch import Tensor, fx, nn

from deltapass.backend import analyse
from deltapass.compiler.capture import capture
from deltapass.compiler.outline import Outline, outline
from deltapass.compiler.tracing import trace
from deltapass.errors import InternalError, NoBlocksError
from deltapass.graph.executable import Executable
from deltapass.graph.program import TensorSpec
from deltapass.graph.stack import Block, Stack
from deltapass.graph.verify import verify

D = 8
Traced = tuple[fx.GraphModule, tuple[Any, ...]]


@functools.cache
def toy(name: str) -> Traced:
    model = models.make(name, depth=4)
    args, kwargs = model.inputs(500.0)
    return trace(model, args, kwargs)


@functools.cache
def tiny(name: str) -> Traced:
    pytest.importorskip("diffusers")
    from models.tiny import make_tiny

    model = make_tiny(name)
    args, kwargs = model.call(0.5)
    return trace(model.model, args, kwargs)


@functools.cache
def outlined(name: str) -> Outline:
    return analyse(*(tiny(name) if name in ("dit", "pixart", "flux") else toy(name)))


def run(found: Outline, arguments: Sequence[Any]) -> tuple[Any, ...]:
    program = Executable(found.program, lambda body: body.module.forward)
    return program([*arguments, *found.captured.constants.values()])[0]


def cut(before: Callable[..., Any], blocks: Sequence[Callable[..., Any]], *given: Any) -> Outline:
    """The outline of hand-made blocks, one after another, on the values that `before` gives."""
    graph = fx.Graph()
    tracer = fx.proxy.GraphAppendingTracer(graph)
    names = [graph.placeholder(f"in_{at}") for at in range(len(given))]
    values: Any = before(*[fx.Proxy(name, tracer) for name in names])
    found = []
    for block in blocks:
        first = len(graph.nodes)
        values = block(*values)
        found.append(Block(name=f"block.{len(found)}", first=first, stop=len(graph.nodes)))
    graph.output(tuple(value.node for value in values))
    captured = capture(fx.GraphModule(nn.Module(), graph), given)
    return outline(captured, Stack(blocks=tuple(found), found_by="hand"))


def bodies(found: Outline) -> list[str]:
    return [found.program.calls[at].body.name for (at,) in found.block_calls]


# ---- running the calls -------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["adaln", "two_stream", "cross_attention", "long_skip"])
def test_outlined_toy_equals_the_graph_bit_for_bit(name: str) -> None:
    module, inputs = toy(name)
    (expected,), (actual,) = module(*inputs), run(outlined(name), inputs)
    assert torch.equal(actual, expected)
    assert actual.stride() == expected.stride()


def test_outlined_in_place_toy_equals_the_graph_bit_for_bit() -> None:
    module, inputs = toy("in_place")
    (actual,) = run(outlined("in_place"), inputs)
    assert torch.equal(actual, module(*inputs)[0])


@pytest.mark.parametrize("name", ["dit", "pixart", "flux"])
def test_outlined_tiny_model_equals_the_graph_bit_for_bit(name: str) -> None:
    module, inputs = tiny(name)
    expected, actual = module(*inputs), run(outlined(name), inputs)
    assert len(actual) == len(expected)
    assert all(torch.equal(one, two) for one, two in zip(actual, expected, strict=True))


def test_constants_of_the_graph_are_inputs_of_the_program() -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table = torch.arange(float(D))

        def forward(self, x: Tensor) -> Tensor:
            return torch.sin(torch.sin(x + self.table))

    captured = capture(fx.symbolic_trace(model := Model()), (torch.ones(2, D),))
    blocks = tuple(Block(name=str(at), first=at, stop=at + 1) for at in (3, 4))
    found = outline(captured, Stack(blocks=blocks, found_by="hand"))
    assert found.program.inputs == ("x", *captured.constants)
    assert captured.constants.keys() <= found.program.weights
    assert torch.equal(run(found, [torch.ones(2, D)])[0], model(torch.ones(2, D)))


def test_results_may_be_literals_or_given_twice() -> None:
    graph = fx.Graph()
    value = graph.call_function(torch.sin, (graph.placeholder("x"),))
    again = graph.call_function(torch.sin, (value,))
    graph.output((again, None, again, 3))
    captured = capture(fx.GraphModule(nn.Module(), graph), (torch.ones(2),))
    blocks = tuple(Block(name=str(at), first=at, stop=at + 1) for at in (1, 2))
    found = outline(captured, Stack(blocks=blocks, found_by="hand"))
    first, nothing, second, number = run(found, [torch.ones(2)])
    assert (nothing, number) == (None, 3)
    assert first is second


# ---- distinct bodies ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "distinct"),
    [
        ("adaln", ["block_0"] * 4),
        ("cross_attention", ["block_0"] * 4),
        ("two_stream", ["block_0"] * 3 + ["block_1"]),
        ("long_skip", ["block_0"] * 2 + ["block_1", "block_2"]),
        ("dit", ["block_0"] + ["block_1"] * 3),
        ("pixart", ["block_0"] + ["block_1"] * 3),
        ("flux", ["block_0"] * 2 + ["block_1", "block_2", "block_3"]),
    ],
)
def test_equal_blocks_share_a_body(name: str, distinct: list[str]) -> None:
    assert bodies(outlined(name)) == distinct


def test_outline_reads_as_calls() -> None:
    assert (
        str(outlined("two_stream").program)
        == """\
full(hidden_states, encoder_hidden_states, timestep):
    image, text, input_3 = prologue(hidden_states, encoder_hidden_states, timestep)
    image_3, text_3 = block_0(input_3, image, text)
    image_6, text_6 = block_0(input_3, image_3, text_3)
    image_9, text_9 = block_0(input_3, image_6, text_6)
    image_12 = block_1(input_3, image_9, text_9)
    linear_34 = epilogue(image_12)
    return linear_34"""
    )


def test_bodies_are_listed_once_in_order_of_first_use() -> None:
    names = [body.name for body in outlined("two_stream").bodies]
    assert names == ["prologue", "block_0", "block_1", "epilogue"]


def test_shared_body_is_called_with_each_blocks_own_weights() -> None:
    found = outlined("adaln")
    taken = [
        {name for name in found.program.calls[at].inputs if name in found.program.weights}
        for (at,) in found.block_calls
    ]
    assert len(taken[0]) == 12
    assert len(set.union(*taken)) == 4 * 12


def test_costs_of_blocks_and_the_rest_add_up_to_the_model() -> None:
    found = outlined("dit")
    captured = sum((macs.full for macs in found.captured.macs.values()), 0.0)
    assert found.program.macs.full == captured
    assert 0 < sum(macs.full for macs in found.block_macs) < captured


def test_operations_of_all_calls_are_those_of_the_graph() -> None:
    for name in ("adaln", "dit"):
        found = outlined(name)
        assert found.program.operations == found.captured.operations


def test_what_lies_between_blocks_is_a_call_of_its_own() -> None:
    captured = capture(
        fx.symbolic_trace(lambda x: torch.sin(torch.cos(torch.sin(x)))), (torch.ones(2),)
    )
    blocks = (Block(name="0", first=1, stop=2), Block(name="1", first=3, stop=4))
    found = outline(captured, Stack(blocks=blocks, found_by="hand"))
    assert [call.label for call in found.program.calls] == ["block", "between", "block"]
    assert found.block_calls == ((0,), (2,))


# ---- what makes two bodies differ --------------------------------------------------------------


def scaled(factor: object) -> Callable[..., Any]:
    return lambda x: (x + torch.tanh(x) * factor,)


def same_body(*blocks: Callable[..., Any]) -> bool:
    found = cut(lambda x: (torch.sin(x),), blocks, torch.ones(D, D))
    return len(set(bodies(found))) == 1


def test_equal_literals_share_a_body() -> None:
    assert same_body(scaled(2.0), scaled(2.0))


@pytest.mark.parametrize(
    ("one", "other"), [(1, 1.0), (1, True), (1.0, True), (2.0, 3.0), (0.0, -0.0)]
)
def test_literals_of_other_type_or_value_do_not_share_a_body(one: object, other: object) -> None:
    assert not same_body(scaled(one), scaled(other))


def test_other_slices_do_not_share_a_body() -> None:
    def block(stop: int) -> Callable[..., Any]:
        return lambda x: (x + torch.tanh(x)[:stop].sum(),)

    assert same_body(block(2), block(2))
    assert not same_body(block(2), block(3))


def test_other_keyword_arguments_do_not_share_a_body() -> None:
    def block(dim: int) -> Callable[..., Any]:
        return lambda x: (x + torch.softmax(x, dim=dim),)

    assert not same_body(block(0), block(1))


def test_other_wiring_does_not_share_a_body() -> None:
    one: Callable[..., Any] = lambda x: (x - torch.tanh(x),)  # noqa: E731
    other: Callable[..., Any] = lambda x: (torch.tanh(x) - x,)  # noqa: E731
    assert not same_body(one, other)


def test_stride_only_difference_gives_another_body() -> None:
    found = cut(
        lambda x: (torch.sin(x).t(),),
        [scaled(2.0), lambda x: ((x + torch.tanh(x) * 2.0).contiguous(),), scaled(2.0)],
        torch.ones(D, D),
    )
    first, last = (found.program.calls[found.block_calls[at][0]].body for at in (0, 2))
    assert first.key != last.key
    assert first.inputs[0].shape == last.inputs[0].shape
    assert (first.inputs[0].stride, last.inputs[0].stride) == ((1, D), (D, 1))


def test_other_values_read_later_give_another_body() -> None:
    def block(x: Tensor) -> tuple[Tensor]:
        return (x + torch.tanh(x),)

    def leaking(x: Tensor, leaked: Tensor | None = None) -> tuple[Tensor, Tensor]:
        inner = torch.tanh(x)
        return x + inner, inner

    found = cut(lambda x: (torch.sin(x),), [block, leaking], torch.ones(D, D))
    assert len(set(bodies(found))) == 2


def test_order_of_first_use_makes_other_blocks_of_one_body_equal() -> None:
    # The same block on swapped streams takes its values in the order in which it reads them.
    def block(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        return y, x + torch.tanh(y)

    found = cut(lambda x: (x.sin(), x.cos()), [block, block], torch.ones(D, D))
    assert bodies(found) == ["block_0", "block_0"]
    first, second = (found.program.calls[at].inputs for (at,) in found.block_calls)
    assert set(first) & set(second) == {"cos"}


# ---- checks ------------------------------------------------------------------------------------


def test_tuple_handed_from_block_to_block_is_refused() -> None:
    def first(x: Tensor) -> tuple[Any, Any]:
        return x, x.chunk(2)

    def second(x: Tensor, halves: Any) -> tuple[Tensor]:
        return (x + halves[0].sum(),)

    with pytest.raises(NoBlocksError, match="value 'chunk' between blocks is no tensor"):
        cut(lambda x: (torch.sin(x),), [first, second], torch.ones(D, D))


def test_outline_of_a_toy_passes_the_check() -> None:
    verify(outlined("cross_attention").program)


def test_value_read_before_it_is_made_is_an_internal_error() -> None:
    program = outlined("adaln").program
    first, second, *rest = program.calls
    with pytest.raises(InternalError, match=r"full: block reads 'input_3' .*report"):
        verify(replace(program, calls=(second, first, *rest)))


def test_value_of_another_layout_is_an_internal_error() -> None:
    program = outlined("adaln").program
    transposed = TensorSpec.of(torch.empty(models.B, models.D, models.T).transpose(1, 2))
    with pytest.raises(InternalError, match=r"wants 'x' as .* strides \(512, 32, 1\), it is"):
        verify(replace(program, specs={**program.specs, "x": transposed}))


@pytest.mark.parametrize("field", ["results", "deltas"])
def test_missing_result_is_an_internal_error(field: str) -> None:
    program = replace(outlined("adaln").program, **{field: ("nowhere",)})  # type: ignore[arg-type]
    with pytest.raises(InternalError, match=r"results \['nowhere'\] are never made"):
        verify(program)
