"""backends/inductor_varying.py: one compiled body for all sizes that its guards allow."""

from __future__ import annotations

import pytest
import torch
from deltapass.backends.inductor import InductorLowering
from torch import fx, nn

from deltapass.graph.keys import Key
from deltapass.graph.program import Body, TensorSpec
from deltapass.graph.sizes import Size

WIDTH = 8
CPU = torch.device("cpu")


def body_of(length: int) -> Body:
    """Tokens (2, length, WIDTH), taken apart and put together again by sizes in the graph."""
    graph = fx.Graph()
    x = graph.placeholder("x")
    parts = graph.call_method("reshape", (x, 2, Size(length, "s"), 4, WIDTH // 4))
    mixed = graph.call_function(torch.sin, (graph.call_method("transpose", (parts, 1, 2)),))
    back = graph.call_method("transpose", (mixed, 1, 2))
    total = Size(2 * length, "2 * s")
    graph.output((graph.call_method("reshape", (back, total, WIDTH)),))
    inputs = TensorSpec(
        shape=(2, length, WIDTH), stride=(length * WIDTH, WIDTH, 1), dtype=torch.float32, device=CPU
    )
    outputs = TensorSpec(
        shape=(2 * length, WIDTH), stride=(WIDTH, 1), dtype=torch.float32, device=CPU
    )
    return Body(
        name="block_0",
        module=fx.GraphModule(nn.Module(), graph),
        key=Key((inputs,)),
        inputs=(inputs,),
        outputs=(outputs,),
        varying=(((2, "s", WIDTH), ("8 * s", WIDTH, 1)),),
    )


def test_body_of_symbols_is_right_for_every_size_it_holds_for() -> None:
    varied = InductorLowering().lower_varying(body_of(5), {"s": 5})
    assert varied is not None
    assert not varied.holds({"s": 1})
    for length in (5, 2, 31):
        assert varied.holds({"s": length})
        x = torch.randn(2, length, WIDTH)
        torch.testing.assert_close(varied(length, x)[0], x.sin().reshape(-1, WIDTH))


@pytest.mark.parametrize("length", [0, 1])
def test_sizes_that_torch_compiles_apart_are_left_to_fixed_ones(length: int) -> None:
    assert InductorLowering().lower_varying(body_of(length), {"s": length}) is None


def test_what_the_compiler_assumed_is_asked_for() -> None:
    body = body_of(5)
    reshape = next(iter(body.module.graph.find_nodes(op="call_method", target="reshape")))
    reshape.update_arg(2, 5)  # a number that does not know its formula
    varied = InductorLowering().lower_varying(body, {"s": 5})
    assert varied is not None
    assert varied.holds({"s": 5})
    assert not varied.holds({"s": 7})
