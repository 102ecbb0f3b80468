"""deltapass/streams.py: which value that enters a span each value that leaves it continues."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import models
import pytest
import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from deltapass.blocks import find_blocks
from deltapass.capture import capture
from deltapass.compiler import trace
from deltapass.errors import StreamError
from deltapass.graphs import Block, Captured
from deltapass.streams import pair_streams

D, T, S = 8, 6, 3
Values = Sequence[Tensor]
Part = Callable[..., Values]


def image() -> Tensor:
    return torch.ones(2, T, D)


def text() -> Tensor:
    return torch.ones(2, S, D)


def enter(*values: Tensor) -> Values:
    """A prologue that makes every value anew."""
    return [torch.sin(value) for value in values]


def leave(*values: Tensor) -> Values:
    return [torch.cos(value) for value in values]


def mix(x: Tensor) -> Tensor:
    """Stands for attention or an MLP: same shape, no stream goes through it."""
    return torch.tanh(x)


def cut(
    before: Part, blocks: Sequence[Part], after: Part, *arguments: Tensor
) -> tuple[Captured, list[Block]]:
    """A graph of three parts, and where in it the blocks of the middle one lie."""
    graph = fx.Graph()
    tracer = fx.proxy.GraphAppendingTracer(graph)
    given = [graph.placeholder(f"in_{at}") for at in range(len(arguments))]
    values: Any = before(*[fx.Proxy(node, tracer) for node in given])
    found = []
    for block in blocks:
        first = len(graph.nodes)
        values = block(*values)
        found.append(Block(name=f"block.{len(found)}", first=first, stop=len(graph.nodes)))
    graph.output(tuple(value.node for value in after(*values)))
    return capture(fx.GraphModule(nn.Module(), graph), arguments), found


def pairs(
    before: Part, blocks: Sequence[Part], after: Part, *arguments: Tensor
) -> list[tuple[str, str]]:
    captured, found = cut(before, blocks, after, *arguments)
    given = pair_streams(captured, found, "the span")
    return [(pair.live_in, pair.live_out) for pair in given]


# ---- pre-norm blocks ---------------------------------------------------------------------------


def add(x: Tensor) -> Values:
    x = x + mix(x)
    return [x + mix(x)]


def test_single_stream() -> None:
    assert pairs(enter, [add], leave, image()) == [("sin", "add_1")]


def test_single_stream_over_several_blocks() -> None:
    assert pairs(enter, [add, add, add], leave, image()) == [("sin", "add_5")]


@pytest.mark.parametrize(
    "block",
    [
        lambda x: [torch.add(x, mix(x))],
        lambda x: [torch.add(mix(x), x, alpha=2.0)],
        lambda x: [mix(x) + x],
        lambda x: [x.add(mix(x))],
        lambda x: [(x + mix(x)).contiguous()],
        lambda x: [(x + mix(x)).clamp(-9.0, 9.0)],
        lambda x: [(x.double() + mix(x).double()).type_as(x)],
        lambda x: [F.dropout(x + mix(x), 0.1, training=False)],
        lambda x: [(x + mix(x)).view(2, T, D)],
    ],
    ids=["torch", "alpha", "after", "method", "contiguous", "clamp", "cast", "dropout", "view"],
)
def test_stream_is_followed_through(block: Part) -> None:
    # A decoy of the stream's shape, read by the first block alone: shape decides nothing here.
    def with_decoy(x: Tensor, decoy: Tensor) -> Values:
        (x,) = block(x + mix(decoy))
        return [x]

    ((live_in, _),) = pairs(lambda x: [x.sin(), x.cos()], [with_decoy], leave, image())
    assert live_in == "sin"


def test_two_streams_of_one_shape_are_told_apart_by_flow() -> None:
    def block(a: Tensor, b: Tensor) -> Values:
        return [b + mix(a), a + mix(b)]  # handed on in the other order

    found = pairs(lambda x: [x.sin(), x.cos()], [block], leave, image())
    assert found == [("cos", "add"), ("sin", "add_1")]


def test_two_streams() -> None:
    def block(x: Tensor, y: Tensor) -> Values:
        joint = mix(torch.cat([y, x], dim=1))
        return [x + joint[:, S:], y + joint[:, :S]]

    arguments = (image(), text())
    assert pairs(enter, [block, block], leave, *arguments) == [("sin", "add_2"), ("sin_1", "add_3")]


def test_dropped_text_stream_needs_no_pair() -> None:
    def last(x: Tensor, y: Tensor) -> Values:
        return [x + mix(torch.cat([y, x], dim=1))[:, S:]]

    def block(x: Tensor, y: Tensor) -> Values:
        return [*last(x, y), y + mix(y)]

    assert pairs(enter, [block, last], leave, image(), text()) == [("sin", "add_2")]


# ---- joined streams ----------------------------------------------------------------------------


SPLITS: dict[str, Callable[[Tensor], Values]] = {
    "slices": lambda both: [both[:, :S], both[:, S:]],
    "stops": lambda both: [both[:, 0:S], both[:, S : S + T, :]],
    "from the end": lambda both: [both[:, :-T], both[:, -T:]],
    "split": lambda both: both.split([S, T], dim=1),
    "torch.split": lambda both: torch.split(both, [S, T], 1),
}


@pytest.mark.parametrize("name", SPLITS)
def test_joined_streams_are_taken_apart(name: str) -> None:
    def block(x: Tensor, y: Tensor) -> Values:
        both = torch.cat([y, x], dim=1)
        both = both + mix(both)
        parts = SPLITS[name](both)
        return [parts[1], parts[0]]

    captured, blocks = cut(enter, [block, block], leave, image(), text())
    found = pair_streams(captured, blocks, "the span")
    assert {pair.live_in: captured.values[pair.live_out].shape for pair in found} == {
        "sin": (2, T, D),
        "sin_1": (2, S, D),
    }


def test_joined_streams_of_one_shape_are_taken_apart_in_order() -> None:
    def block(x: Tensor, y: Tensor) -> Values:
        both = torch.cat([y, x], dim=1)
        both = both + mix(both)
        return [both[:, T:], both[:, :T]]

    found = pairs(lambda x: [x.sin(), x.cos()], [block], leave, image())
    assert found == [("sin", "getitem"), ("cos", "getitem_1")]


def test_equal_chunks_of_joined_streams_are_taken_apart() -> None:
    def block(x: Tensor, y: Tensor) -> Values:
        both = torch.cat([y, x], dim=-1)
        parts = (both + mix(both)).chunk(2, dim=-1)
        return [parts[1], parts[0]]

    found = pairs(lambda x: [x.sin(), x.cos()], [block], leave, image())
    assert sorted(live_in for live_in, _ in found) == ["cos", "sin"]
    by_out = {live_out: live_in for live_in, live_out in found}
    assert by_out == {"getitem": "sin", "getitem_1": "cos"}


def test_joined_stream_may_leave_as_one() -> None:
    def before(x: Tensor, y: Tensor) -> Values:
        return [torch.cat([y.sin(), x.sin()], dim=1)]

    def after(both: Tensor) -> Values:
        return [both[:, S:]]

    assert pairs(before, [add, add], after, image(), text()) == [("cat", "add_3")]


def test_slice_across_two_joined_streams_is_no_stream() -> None:
    def block(x: Tensor, y: Tensor) -> Values:
        both = torch.cat([y, x], dim=1)
        both = both + mix(both)
        return [both[:, 1 : T + 1]]

    # T of S + T tokens: the shape of the image, but other tokens. The choice by shape is allowed
    # where it is the only one, so there must be two.
    with pytest.raises(StreamError, match="could continue any of: sin, cos"):
        pairs(lambda x, y: [x.sin(), x.cos(), y.sin()], [lambda a, b, y: block(a + mix(b), y)],
              leave, image(), text())  # fmt: skip


# ---- by shape, where nothing else tells --------------------------------------------------------


def post_norm(x: Tensor) -> Values:
    x = F.layer_norm(x + mix(x), (D,))
    return [F.layer_norm(x + mix(x), (D,))]


def test_post_norm_stack_is_paired_by_its_only_shape() -> None:
    found = pairs(enter, [post_norm, post_norm], leave, image())
    assert found == [("sin", "layer_norm_3")]


def test_post_norm_streams_of_two_shapes_are_paired_by_shape() -> None:
    def block(x: Tensor, y: Tensor) -> Values:
        return [*post_norm(x + mix(y).mean()), *post_norm(y)]

    found = pairs(enter, [block], leave, image(), text())
    assert found == [("sin", "layer_norm_1"), ("sin_1", "layer_norm_3")]


def test_two_post_norm_streams_of_one_shape_are_refused() -> None:
    def block(x: Tensor, y: Tensor) -> Values:
        return [*post_norm(x), *post_norm(y)]

    with pytest.raises(StreamError, match="leaves the span and could continue any of: sin, cos"):
        pairs(lambda x: [x.sin(), x.cos()], [block], leave, image())


def test_two_streams_added_to_each_other_are_not_guessed() -> None:
    def block(x: Tensor, y: Tensor) -> Values:
        return [x + y]

    with pytest.raises(StreamError, match="could continue any of"):
        pairs(lambda x: [x.sin(), x.cos()], [block], leave, image())


def test_shape_pairs_only_equal_types() -> None:
    def block(x: Tensor) -> Values:
        return [x.double() + 1.0]

    with pytest.raises(StreamError, match="continues no value that enters it"):
        pairs(enter, [block], leave, image())


# ---- values that are no streams ----------------------------------------------------------------


def test_side_value_is_refused() -> None:
    def block(x: Tensor) -> Values:
        (x,) = add(x)
        return [x, torch.sigmoid(x).mean(dim=1)]

    with pytest.raises(
        StreamError, match="'mean' leaves the span and continues no value"
    ) as caught:
        pairs(enter, [block], leave, image())
    assert "cached_blocks" in caught.value.remedy


def test_side_value_that_nobody_reads_is_no_matter() -> None:
    def block(x: Tensor) -> Values:
        (x,) = add(x)
        mix(x).mean(dim=1)
        return [x]

    assert pairs(enter, [block], leave, image()) == [("sin", "add_1")]


def test_value_from_the_middle_of_a_span_gets_a_pair_of_its_own() -> None:
    # A long skip out of the span: it lies on the same stream, so it has a delta too.
    def first(x: Tensor) -> Values:
        (x,) = add(x)
        return [x, x]

    def second(x: Tensor, skip: Tensor) -> Values:
        return [*add(x), skip]

    found = pairs(enter, [first, second], leave, image())
    assert found == [("sin", "add_1"), ("sin", "add_3")]


def test_conditioning_added_by_every_block_is_no_stream() -> None:
    # Of the stream's own shape and added like it, so flow alone cannot tell.
    def block(x: Tensor, c: Tensor) -> Values:
        return [x + mix(c), c]

    assert pairs(lambda x: [x.sin(), x.cos()], [block, block], lambda x, c: leave(x), image()) == [
        ("sin", "add_1")
    ]


def test_conditioning_is_not_taken_by_its_shape() -> None:
    def block(x: Tensor, c: Tensor) -> Values:
        return [F.layer_norm(x + mix(c), (D,)), c]

    found = pairs(lambda x: [x.sin(), x.cos()], [block, block], lambda x, c: leave(x), image())
    assert found == [("sin", "layer_norm_1")]


def test_conditioning_read_after_the_span_is_not_taken_by_its_shape() -> None:
    def block(x: Tensor, c: Tensor) -> Values:
        return [F.layer_norm(x + mix(c), (D,)), c]

    found = pairs(lambda x: [x.sin(), x.cos()], [block], leave, image())
    assert found == [("sin", "layer_norm")]


def test_input_of_the_model_is_not_taken_by_its_shape() -> None:
    def block(x: Tensor, raw: Tensor) -> Values:
        return [F.layer_norm(x + mix(raw), (D,))]

    assert pairs(lambda x: [x.sin(), x], [block], leave, image()) == [("sin", "layer_norm")]


def test_deeper_span_of_a_longer_stack_has_its_own_live_in() -> None:
    captured, blocks = cut(enter, [add, add, add], leave, image())
    (pair,) = pair_streams(captured, blocks[1:], "the span")
    assert (pair.live_in, pair.live_out) == ("add_1", "add_5")


# ---- on Dynamo's graphs ------------------------------------------------------------------------


@functools.cache
def toy(name: str) -> tuple[Captured, tuple[Block, ...]]:
    args, kwargs = models.make(name, depth=3).inputs(500.0)
    captured = capture(*trace(models.make(name, depth=3), args, kwargs))
    return captured, find_blocks(captured).blocks


@pytest.mark.parametrize(("name", "streams"), [("adaln", 1), ("in_place", 1), ("two_stream", 2)])
def test_toy_has_as_many_pairs_as_streams(name: str, streams: int) -> None:
    captured, blocks = toy(name)
    found = pair_streams(captured, blocks[:2], "the span")
    assert len(found) == len({pair.live_in for pair in found}) == streams


def test_last_block_of_a_two_stream_toy_drops_the_text() -> None:
    captured, blocks = toy("two_stream")
    (pair,) = pair_streams(captured, blocks, "the span")
    assert captured.values[pair.live_out].shape == (models.B, models.T, models.D)


@pytest.mark.parametrize("name", ["adaln", "in_place", "two_stream"])
def test_live_in_and_live_out_agree_in_shape_and_type(name: str) -> None:
    captured, blocks = toy(name)
    for pair in pair_streams(captured, blocks[:2], "the span"):
        one, two = captured.values[pair.live_in], captured.values[pair.live_out]
        assert (one.shape, one.dtype) == (two.shape, two.dtype)
