"""graph/program.py: specs, bytes, multiply-accumulates, and how programs read."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from torch import fx

from deltapass.graph.program import Body, Call, Captured, Literal, Macs, Program, TensorSpec
from deltapass.graph.stack import Block, Stack

CPU = torch.device("cpu")


def spec(*shape: int, dtype: torch.dtype = torch.float32) -> TensorSpec:
    return TensorSpec.of(torch.empty(shape, dtype=dtype, device="cpu"))


NO_MACS = Macs()


def body(name: str, macs: Macs = NO_MACS) -> Body:
    """Two operations on one value."""
    graph = fx.Graph()
    value = graph.call_function(torch.sin, (graph.placeholder("x"),))
    graph.output((graph.call_function(torch.neg, (value,)),))
    module = fx.GraphModule(torch.nn.Module(), graph)
    return Body(
        name=name, module=module, key=(name,), inputs=(spec(2),), outputs=(spec(2),), macs=macs
    )


def program() -> Program:
    block = body("block_0", Macs(10.0, 12.0))
    return Program(
        name="full",
        inputs=("sample", "w1", "w2", "timestep"),
        calls=(
            Call(
                label="prologue",
                body=body("prologue", Macs(1.0, 1.0)),
                inputs=("sample", "timestep"),
                outputs=("x", "c"),
            ),
            Call(label="block", body=block, inputs=("w1", "x", "c"), outputs=("x1",)),
            Call(label="block", body=block, inputs=("w2", "x1", "c"), outputs=("x2",)),
        ),
        results=("x2", Literal(None)),
        deltas=("delta_0",),
        specs={},
        weights=frozenset({"w1", "w2"}),
    )


# ---- specs -------------------------------------------------------------------------------------


def test_spec_keeps_shape_strides_type_and_device() -> None:
    transposed = torch.empty(2, 3, dtype=torch.bfloat16).t()
    assert TensorSpec.of(transposed) == TensorSpec(
        shape=(3, 2), stride=(1, 3), dtype=torch.bfloat16, device=CPU
    )


@pytest.mark.parametrize(
    "other",
    [
        torch.empty(3, 2),
        torch.empty(3, 2).t(),
        torch.empty(2, 3, dtype=torch.float64),
        torch.empty(2, 3, device="meta"),
    ],
    ids=["shape", "stride", "dtype", "device"],
)
def test_specs_that_differ_in_one_thing_are_unequal(other: torch.Tensor) -> None:
    assert TensorSpec.of(torch.empty(2, 3)) != TensorSpec.of(other)


def test_equal_specs_have_equal_hashes() -> None:
    assert len({spec(2, 3), TensorSpec.of(torch.ones(2, 3))}) == 1


def test_spec_reads_as_type_and_shape() -> None:
    assert str(spec(2, 16, 32, dtype=torch.bfloat16)) == "bfloat16[2, 16, 32]"
    assert str(spec()) == "float32[]"


@pytest.mark.parametrize(
    ("shape", "dtype", "nbytes"),
    [
        ((2, 3), torch.float32, 24),
        ((2, 3), torch.bfloat16, 12),
        ((2, 3), torch.int64, 48),
        ((), torch.float64, 8),
        ((0, 5), torch.float32, 0),
    ],
)
def test_nbytes_is_elements_times_size(
    shape: tuple[int, ...], dtype: torch.dtype, nbytes: int
) -> None:
    assert spec(*shape, dtype=dtype).nbytes == nbytes


def test_nbytes_counts_no_gaps() -> None:
    assert TensorSpec.of(torch.empty(4, 10)[:, :3]).nbytes == 4 * 3 * 4


def test_data_between_stages_is_frozen() -> None:
    for value, name in ((spec(2), "shape"), (Macs(), "full"), (program(), "calls")):
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(value, name, ())


# ---- multiply-accumulates ----------------------------------------------------------------------


def test_macs_add_in_each_convention() -> None:
    assert Macs(1.0, 2.0) + Macs(10.0, 20.0) == Macs(11.0, 22.0)


def test_macs_times_a_number_scale_in_each_convention() -> None:
    assert Macs(1.0, 2.0) * 2.5 == Macs(2.5, 5.0)


def test_no_macs_is_neutral() -> None:
    assert sum([Macs(1.0, 2.0)], Macs()) == Macs(1.0, 2.0)


# ---- captured, stack, literals -----------------------------------------------------------------


def captured(values: dict[str, Any]) -> Captured:
    module = body("b").module
    graph = module.graph
    return Captured(graph=graph, root=module, inputs=(), constants={}, values=values, macs={})


def test_captured_counts_operations_but_no_inputs_or_output() -> None:
    assert captured({}).operations == 2


def test_captured_gives_no_spec_for_several_tensors() -> None:
    graph = captured({"x": spec(2), "sin": (spec(2), spec(2))})
    found = {node.name: graph.spec(node) for node in graph.nodes}
    assert found == {"x": spec(2), "sin": None, "neg": None, "output": None}


def test_stack_says_how_many_blocks_and_how_it_found_them() -> None:
    blocks = tuple(Block(name=f"blocks.{i}", first=i, stop=i + 1) for i in range(3))
    stack = Stack(blocks=blocks, found_by="module stack")
    assert len(stack) == 3
    assert str(stack) == "3 blocks (blocks.0 .. blocks.2), found by module stack"


@pytest.mark.parametrize(("value", "text"), [(None, "None"), ("a", "'a'"), (1.0, "1.0")])
def test_literal_reads_as_its_value(value: object, text: str) -> None:
    assert str(Literal(value)) == text


# ---- programs ----------------------------------------------------------------------------------


def test_program_reads_as_calls_without_weights() -> None:
    expected = """\
full(sample, timestep):
    x, c = prologue(sample, timestep)
    x1 = block_0(x, c)
    x2 = block_0(x1, c)
    return x2, None, delta_0"""
    assert str(program()) == expected


def test_program_counts_a_shared_body_once_for_every_call() -> None:
    assert program().macs == Macs(21.0, 25.0)
    assert program().operations == 6


def test_value_results_leave_out_literals() -> None:
    assert program().value_results == ("x2",)
