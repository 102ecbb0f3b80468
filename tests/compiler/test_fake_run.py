"""compiler/fake_run.py: one run on fake tensors tells values, costs and in-place writes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.nn import functional as F

from deltapass.compiler.fake_run import FakeRun, ModeError, fake_run, spec_of, to_fake
from deltapass.compiler.plain_operators import without_modes
from deltapass.errors import UnsupportedOperatorError
from deltapass.graph.program import Macs, TensorSpec


def attention(query: Tensor, key: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(query, key, key)


def linear(x: Tensor, weight: Tensor) -> Tensor:
    return F.linear(x, weight)


def seen(model: Callable[..., Any], *arguments: Any) -> FakeRun:
    with torch.no_grad():
        return fake_run(fx.symbolic_trace(model), arguments)


def cost(model: Callable[..., Any], *arguments: Any) -> Macs:
    return sum(seen(model, *arguments).macs.values(), Macs())


# ---- multiply-accumulates, by hand -------------------------------------------------------------


@pytest.mark.parametrize("bias", [False, True])
def test_linear_costs_rows_times_weights(bias: bool) -> None:
    macs = cost(nn.Linear(4, 5, bias=bias), torch.ones(2, 3, 4))
    assert macs == Macs(2 * 3 * 4 * 5, 2 * 3 * 4 * 5)


def test_convolution_costs_places_times_weights() -> None:
    macs = cost(nn.Conv2d(3, 4, 3, padding=1), torch.ones(2, 3, 8, 8))
    assert macs == Macs(2 * 64 * 4 * 3 * 9, 2 * 64 * 4 * 3 * 9)


def test_patch_embedding_costs_patches_times_weights() -> None:
    macs = cost(nn.Conv2d(4, 32, 2, stride=2), torch.ones(1, 4, 8, 8))
    assert macs == Macs(16 * 4 * 32 * 4, 16 * 4 * 32 * 4)


def test_grouped_convolution_costs_its_own_channels_only() -> None:
    macs = cost(nn.Conv1d(8, 8, 3, padding=1, groups=4), torch.ones(1, 8, 10))
    assert macs == Macs(10 * 8 * 2 * 3, 10 * 8 * 2 * 3)


def test_attention_is_counted_in_full_but_not_in_the_papers_way() -> None:
    query, key = torch.ones(2, 3, 7, 4), torch.ones(2, 3, 5, 4)
    macs = cost(attention, query, key)
    assert macs == Macs(0.0, 2 * 3 * (7 * 5 * 4 + 7 * 5 * 4))


def test_masked_attention_costs_the_same() -> None:
    value = torch.ones(2, 3, 7, 4)

    def model(q: Tensor, mask: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(q, q, q, attn_mask=mask)

    assert cost(model, value, torch.zeros(7, 7)) == Macs(0.0, 2 * 3 * 2 * 7 * 7 * 4)


def test_attention_written_as_products_costs_the_same() -> None:
    def model(q: Tensor, k: Tensor) -> Tensor:
        return torch.softmax(q @ k.transpose(-1, -2), dim=-1) @ k

    query, key = torch.ones(2, 3, 7, 4), torch.ones(2, 3, 5, 4)
    assert cost(model, query, key) == cost(attention, query, key)


def test_costs_belong_to_their_node() -> None:
    def model(x: Tensor, w: Tensor) -> Tensor:
        y = F.linear(x, w)
        return F.linear(F.gelu(y), w) + y

    macs = seen(model, torch.ones(2, 4), torch.ones(4, 4)).macs
    assert macs == {"linear": Macs(32, 32), "linear_1": Macs(32, 32)}


def test_half_precision_costs_the_same() -> None:
    x, w = torch.ones(2, 4, dtype=torch.bfloat16), torch.ones(5, 4, dtype=torch.bfloat16)
    assert cost(linear, x, w) == Macs(40, 40)


# ---- writes ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("model", "writes"),
    [
        (lambda x: x.add_(1.0), ["add_"]),
        (lambda x: (x * 2.0).relu_(), ["relu_"]),
        (lambda x: (x * 2.0)[0].zero_(), ["zero_"]),
        (lambda x: F.silu(x * 2.0, inplace=True), ["silu"]),
        (lambda x: torch.sin(x, out=x * 2.0), ["sin"]),
        (lambda x: torch.sin(x).add_(x).mul_(x), ["add_", "mul_"]),
    ],
    ids=["input", "fresh", "view", "flag", "out", "twice"],
)
def test_writes_are_found(model: Callable[..., Any], writes: list[str]) -> None:
    assert seen(model, torch.ones(3, 2)).writes == writes


def test_write_through_a_call_of_setitem_is_found() -> None:
    graph = fx.Graph()
    doubled = graph.call_function(torch.mul, (graph.placeholder("x"), 2.0))
    graph.call_method("__setitem__", (doubled, 0, 0.0))
    graph.output(doubled)
    module = fx.GraphModule(nn.Module(), graph)
    assert fake_run(module, [torch.ones(3, 2)]).writes == ["setitem"]


def test_functional_graph_has_no_writes() -> None:
    def model(x: Tensor) -> Tensor:
        return F.layer_norm(F.dropout(x, 0.5, training=False).clone(), (4,)).contiguous()

    assert seen(model, torch.ones(2, 4)).writes == []


def test_scratch_inside_one_operator_is_no_write() -> None:
    # Filling a tensor that the operator itself made changes nothing that the graph holds.
    assert seen(lambda x: x + torch.full((3,), 2.0), torch.ones(3)).writes == []


# ---- what was run before is not run again ------------------------------------------------------


def two_layers(x: Tensor, first: Tensor, second: Tensor) -> Tensor:
    for weight in (first, second):
        x = x + F.gelu(F.linear(x, weight))
    return x


def products_run(count: int) -> int:
    """Matrix products that are run on fake tensors for this number of equal layers."""
    graph = fx.Graph()
    value = graph.placeholder("x")
    for at in range(count):
        weight = graph.placeholder(f"weight_{at}")
        value = graph.call_function(F.gelu, (graph.call_function(F.linear, (value, weight)),))
        value = graph.call_method("view", (value, graph.call_method("size", (value, 0)), -1))
    graph.output(value)
    given = [torch.ones(2, 4), *(torch.ones(4, 4) for _ in range(count))]
    with noted_operators() as found:
        fake_run(fx.GraphModule(nn.Module(), graph), given)
    return sum(operator is torch.ops.aten.mm.default for operator in found)


@contextmanager
def noted_operators() -> Iterator[list[Any]]:
    """Operators that reach the fake tensors' dispatch."""
    found: list[Any] = []
    dispatch = FakeTensorMode.dispatch

    def noting(self: FakeTensorMode, func: Any, *rest: Any) -> Any:
        found.append(func)
        return dispatch(self, func, *rest)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(FakeTensorMode, "dispatch", noting)
        yield found


def test_equal_layers_are_run_once() -> None:
    assert products_run(8) == products_run(2) == 2  # on the input, and on a layer's result


def test_every_layer_has_its_values_and_costs() -> None:
    found = seen(two_layers, *(torch.ones(n, 4) for n in (2, 4, 4)))
    assert found.macs == {"linear": Macs(32, 32), "linear_1": Macs(32, 32)}
    assert found.values["linear_1"].shape == (2, 4)


def test_graph_that_enters_autocast_is_said_to() -> None:
    x, w = torch.ones(2, 4), torch.ones(4, 4)
    graph = fx.Graph()
    given = graph.placeholder("x"), graph.placeholder("w")
    enter = graph.call_function(
        torch.amp.autocast_mode._enter_autocast, ("cpu", torch.bfloat16, True, None)
    )
    inside = graph.call_function(F.linear, given)
    graph.call_function(torch.amp.autocast_mode._exit_autocast, (enter,))
    graph.output((inside, graph.call_function(F.linear, given)))
    module = fx.GraphModule(nn.Module(), graph)
    with pytest.raises(ModeError):
        fake_run(module, [x, w])
    assert not torch.is_autocast_enabled("cpu")
    values = fake_run(without_modes(module, [x, w]), [x, w]).values
    assert [value.dtype for value in values["output"]] == [torch.bfloat16, torch.float32]


def test_layout_changed_in_place_leaves_other_values_as_they_were() -> None:
    found = seen(lambda x: ((x * 2.0).t_(), x * 3.0), torch.ones(2, 3))
    assert found.writes == ["t_"]
    assert found.values["mul_1"].shape == (2, 3)


def test_numbers_that_differ_in_kind_alone_are_told_apart() -> None:
    found = seen(lambda x: (x + 1, x + 1.0), torch.ones(2, dtype=torch.int64))
    assert [value.dtype for value in found.values["output"]] == [torch.int64, torch.float32]


def with_constants(
    *numbers: int, then: Callable[[fx.Graph, fx.Node, list[fx.Node]], Any]
) -> fx.GraphModule:
    graph = fx.Graph()
    x = graph.placeholder("x")
    made = [graph.call_function(torch.tensor, (number,)) for number in numbers]
    graph.output(then(graph, x, made))
    return fx.GraphModule(nn.Module(), graph)


def test_constants_of_one_layout_keep_their_numbers() -> None:
    def items(graph: fx.Graph, _: fx.Node, made: list[fx.Node]) -> Any:
        return tuple(graph.call_method("item", (each,)) for each in made)

    assert fake_run(with_constants(3, 5, then=items), [torch.ones(2)]).values["output"] == (3, 5)


def test_number_read_from_data_is_refused_beside_a_constant_of_its_layout() -> None:
    def scaled(graph: fx.Graph, x: fx.Node, _: list[fx.Node]) -> Any:
        number = graph.call_method("item", (graph.call_method("max", (x,)),))
        return graph.call_method("mul", (x, number))

    with pytest.raises(UnsupportedOperatorError):
        fake_run(with_constants(3, then=scaled), [torch.arange(3)])


# ---- values ------------------------------------------------------------------------------------


def test_values_are_fake_and_of_static_shape() -> None:
    values = seen(lambda x: torch.sin(x).sum(0), torch.ones(3, 2)).values
    assert list(values) == ["x", "sin", "sum_1", "output"]
    assert all(isinstance(value, FakeTensor) for value in values.values())
    assert [type(size) for size in values["sum_1"].shape] == [int]


def test_numbers_are_kept_as_they_are() -> None:
    assert to_fake([3, None, 1.5]) == [3, None, 1.5]


def test_spec_of_several_tensors_keeps_their_order() -> None:
    pair = (torch.ones(2), [torch.ones(3, dtype=torch.int64), 4])
    first, (second, number) = spec_of(pair)
    assert (str(first), str(second), number) == ("float32[2]", "int64[3]", 4)
    assert isinstance(first, TensorSpec)
