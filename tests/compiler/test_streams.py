"""compiler/streams.py: which value that enters a span each value that leaves it continues."""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import models
import pytest
import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from deltapass.compiler.blocks import find_blocks
from deltapass.compiler.capture import capture
from deltapass.compiler.roles import assign_roles
from deltapass.compiler.streams import pair_streams
from deltapass.compiler.tracing import trace
from deltapass.errors import StreamError
from deltapass.graph.program import Captured, Role
from deltapass.graph.stack import Block
from deltapass.options import StatedInputs

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
        return [mix(x).double()]

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
    assert caught.value.remedy == "Cache another span"


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


# ---- side inputs: residuals of a control network, long skips ------------------------------------


def by_flow(
    before: Part, blocks: Sequence[Part], *arguments: Tensor, after: Part = leave
) -> list[tuple[str, str]]:
    """Pairs where shape decides nothing."""
    captured, found = cut(before, blocks, after, *arguments)
    given = pair_streams(captured, found, "the span", by_shape=False)
    return [(pair.live_in, pair.live_out) for pair in given]


def first(*values: Tensor) -> Values:
    return leave(values[0])


def controlled(x: Tensor, *residuals: Tensor) -> Values:
    """A block, then the first of the residuals, as it is."""
    return [add(x)[0] + residuals[0], *residuals[1:]]


HANDED_IN: Part = lambda x, *residuals: [x.sin(), *residuals]  # noqa: E731
MADE: Part = lambda x, *residuals: [x.sin(), *(c.cos() for c in residuals)]  # noqa: E731


@pytest.mark.parametrize("before", [HANDED_IN, MADE], ids=["handed in", "made"])
def test_residual_added_in_the_span_is_no_stream(before: Part) -> None:
    arguments = [image() for _ in range(4)]
    assert by_flow(before, [controlled] * 3, *arguments) == [("sin", "add_8")]


@pytest.mark.parametrize("before", [HANDED_IN, MADE], ids=["handed in", "made"])
def test_residual_of_several_blocks_is_no_stream(before: Part) -> None:
    def block(x: Tensor, c: Tensor) -> Values:
        return [add(x)[0] + c, c]

    assert by_flow(before, [block] * 3, image(), image(), after=first) == [("sin", "add_8")]


@pytest.mark.parametrize(
    "put",
    [
        lambda x, c: c + x,
        torch.add,
        lambda x, c: x.add(c),
        torch.ops.aten.add.Tensor,
        lambda x, c: torch.ops.aten.add.Tensor(x, torch.ops.aten.clone.default(c)),
        lambda x, c: x + c.to(torch.float32),
        lambda x, c: x + c.type_as(x),
        lambda x, c: (x.double() + c.double()).float(),
        lambda x, c: x + torch.stack([c, c])[1],
        lambda x, c: x + 0.5 * c,
        operator.iadd,
    ],
    ids=[
        *("after", "torch", "method", "aten", "aten copy", "cast", "type_as", "double"),
        *("index", "scaled", "in place"),
    ],
)
def test_residual_is_no_stream_however_it_is_added(put: Callable[..., Tensor]) -> None:
    def block(x: Tensor, c: Tensor, d: Tensor) -> Values:
        return [put(add(x)[0], c), d, c]

    # Whatever the operator is called: the span has one stream, and it is that of the blocks.
    ((live_in, _),) = by_flow(HANDED_IN, [block] * 2, image(), image(), image(), after=first)
    assert live_in == "sin"


def test_part_of_one_input_of_all_residuals_is_no_stream() -> None:
    def block(x: Tensor, residuals: Tensor) -> Values:
        return [add(x + residuals[0])[0] + residuals[1], residuals]

    every = torch.ones(2, *image().shape)
    assert by_flow(HANDED_IN, [block] * 2, image(), every, after=first) == [("sin", "add_7")]


def test_residual_of_one_of_two_streams_of_one_shape() -> None:
    def block(x: Tensor, y: Tensor, c: Tensor) -> Values:
        both = torch.cat([y, x], dim=1)
        both = both + mix(both)
        return [both[:, T:] + c, both[:, :T], c]

    def before(x: Tensor, c: Tensor) -> Values:
        return [x.sin(), x.cos(), c]

    def after(x: Tensor, y: Tensor, c: Tensor) -> Values:
        return leave(x, y)

    found = by_flow(before, [block, block], image(), image(), after=after)
    assert sorted(found) == [("cos", "getitem_3"), ("sin", "add_3")]


def test_residual_added_in_place_to_a_part_of_a_joined_stream() -> None:
    def block(joined: Tensor, c: Tensor) -> Values:
        joined = joined + mix(joined)
        joined[:, S:, ...].add_(c)
        return [joined, c]

    def model(x: Tensor, y: Tensor, c: Tensor) -> Tensor:
        joined = torch.cat([y.sin(), x.sin()], dim=1)
        for _ in range(3):
            joined, c = block(joined, c)
        return joined.cos()

    captured = capture(fx.symbolic_trace(model), (image(), text(), image()))
    nodes = list(captured.module.graph.nodes)
    tanh = [at for at, node in enumerate(nodes) if "tanh" in node.name]
    stop = next(at for at, node in enumerate(nodes) if "cos" in node.name)
    span = [Block(name="span", first=tanh[0], stop=stop)]
    (pair,) = pair_streams(captured, span, "the span", by_shape=False)
    assert pair.live_in == "cat"
    assert pair.live_out.startswith("slice_scatter")


def test_stack_that_starts_with_a_residual() -> None:
    def block(x: Tensor, c: Tensor, *more: Tensor) -> Values:
        return [*add(x + c), *more]

    arguments = [image() for _ in range(3)]
    for before in (HANDED_IN, MADE):  # of the two, only x comes from the noisy sample
        captured, blocks = cut(before, [block] * 2, leave, *arguments)
        sample, *others = captured.inputs
        others = [replace(given, role=Role.DATA) for given in others]
        told = replace(captured, inputs=(replace(sample, role=Role.SAMPLE), *others))
        (pair,) = pair_streams(told, blocks, "the span", by_shape=False)
        assert (pair.live_in, pair.live_out) == ("sin", "add_5")
    # Both come from it, neither was read before: only a stack's first block cannot know.
    both: Part = lambda x, *more: [x.sin(), x.cos(), *more[1:]]  # noqa: E731
    with pytest.raises(StreamError, match="continues no value"):
        by_flow(both, [block] * 2, *arguments)
    captured, blocks = cut(both, [block] * 2, leave, *arguments)
    (pair,) = pair_streams(captured, blocks[1:], "the span", by_shape=False)
    assert (pair.live_in, pair.live_out) == ("add_2", "add_5")


def test_position_embedding_in_a_branch_is_no_stream() -> None:
    def block(x: Tensor, c: Tensor) -> Values:
        return [x + (c + mix(x)), c]

    assert by_flow(MADE, [block] * 2, image(), image(), after=first) == [("sin", "add_3")]


def test_residual_after_a_block_that_adds_nothing_is_no_stream() -> None:
    # The stream is broken by the norm, so the residual alone leads out of the span.
    def block(x: Tensor, c: Tensor) -> Values:
        return [post_norm(x)[0] + c, c]

    with pytest.raises(StreamError, match="continues no value"):
        by_flow(HANDED_IN, [block], image(), image(), after=first)
    assert pairs(HANDED_IN, [block], first, image(), image()) == [("sin", "add_2")]


@pytest.mark.parametrize("before", [HANDED_IN, MADE], ids=["handed in", "made"])
def test_residual_after_a_joining_block_is_no_stream(before: Part) -> None:
    # Nor where the stream starts anew within the span, from a projection of two values.
    def block(x: Tensor, c: Tensor) -> Values:
        joined = torch.cat([x, x], dim=-1)[..., ::2]
        return [*add(add(joined)[0] + c), c]

    with pytest.raises(StreamError, match="continues no value"):
        by_flow(before, [block, block], image(), image(), after=first)
    assert pairs(before, [block, block], first, image(), image()) == [("sin", "add_9")]


def test_sum_of_two_residuals_is_no_stream() -> None:
    def block(x: Tensor, c: Tensor, d: Tensor) -> Values:
        return [add(x)[0] + (c + d), c, d]

    for before in (HANDED_IN, MADE):
        found = by_flow(before, [block] * 2, image(), image(), image(), after=first)
        assert found == [("sin", "add_7")]


@pytest.mark.parametrize("entry", ["middle", "start"])
def test_long_skip_by_addition_is_no_stream(entry: str) -> None:
    def early(x: Tensor) -> Values:
        (x,) = add(x)
        return [x, x]

    def late(x: Tensor, skip: Tensor) -> Values:
        return add(x + skip) if entry == "start" else [add(x)[0] + skip]

    blocks = [early, lambda x, skip: [*add(x), skip], late]
    captured, found = cut(enter, blocks, leave, image())
    (pair,) = pair_streams(captured, found[2:], "the span", by_shape=False)
    assert pair.live_in == "add_3"
    (pair,) = pair_streams(captured, found, "the span", by_shape=False)
    assert pair.live_in == "sin"


def test_two_streams_that_both_change_and_are_added_are_not_guessed() -> None:
    def block(x: Tensor, y: Tensor) -> Values:
        return [add(x)[0] + add(y)[0]]

    with pytest.raises(StreamError, match="could continue any of: sin, cos"):
        pairs(lambda x: [x.sin(), x.cos()], [block], leave, image())


def test_stream_to_which_another_is_added_before_it_is_read_is_not_guessed() -> None:
    # Of x and y only y is read, but y goes on by itself: x may be the stream that is added to.
    def block(x: Tensor, y: Tensor) -> Values:
        (y,) = add(y)
        return [x + y, y]

    with pytest.raises(StreamError, match="continues no value"):
        by_flow(lambda x: [x.sin(), x.cos()], [block], image())


def test_running_total_of_what_the_blocks_give_is_not_guessed() -> None:
    def block(x: Tensor, total: Tensor) -> Values:
        (x,) = add(x)
        return [x, total + x]

    with pytest.raises(StreamError, match="continues no value"):
        by_flow(lambda x: [x.sin(), x.cos()], [block] * 2, image())


def test_value_added_to_itself_is_not_guessed() -> None:
    def block(x: Tensor) -> Values:
        (x,) = add(x)
        return [x + x]

    with pytest.raises(StreamError, match="continues no value"):
        by_flow(enter, [block], image())


def test_noisy_sample_may_be_the_stream_as_it_is() -> None:
    def block(x: Tensor, c: Tensor) -> Values:
        return [*add(x + c), c]

    captured, blocks = cut(lambda x, c: [x, c], [block] * 2, first, image(), image())
    captured = assign_roles(captured, StatedInputs(sample=("in_0",)))
    (pair,) = pair_streams(captured, blocks, "the span", by_shape=False)
    assert pair.live_in == captured.inputs[0].name
    assert captured.inputs[0].role is Role.SAMPLE


@pytest.mark.parametrize("own", [False, True], ids=["handed in", "own network"])
def test_controlled_toy_has_one_stream(own: bool) -> None:
    model = models.make_controlled(own=own)
    args, kwargs = model.inputs(500.0)
    captured = capture(*trace(model, args, kwargs))
    blocks = find_blocks(captured).blocks
    assert [block.name for block in blocks] == [f"blocks.{index}" for index in range(4)]
    for start, stop in ((0, 3), (1, 4), (1, 3), (0, 4)):
        (pair,) = pair_streams(captured, blocks[start:stop], "the span", by_shape=False)
        inputs = {given.name for given in captured.inputs}
        assert pair.live_in not in inputs


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
