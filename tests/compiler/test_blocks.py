"""compiler/blocks.py: the stack, by the module stack on the nodes, or by structure without it."""

from __future__ import annotations

import functools
import itertools

import models
import pytest
import torch
from blocks_case import Graph, names, stack_of, stripped, traced
from models import AdaLNBlock, AdaLNDenoiser, CrossAttentionBlock, D, noise
from torch import Tensor, fx, nn

from deltapass.compiler.blocks import find_blocks
from deltapass.compiler.capture import capture
from deltapass.compiler.tracing import trace
from deltapass.errors import NoBlocksError
from deltapass.graph.stack import Stack


@functools.cache
def toy(name: str) -> Graph:
    return traced(
        models.make(name) if name in ("attributes", "no_blocks") else models.make(name, depth=3)
    )


@functools.cache
def tiny(name: str) -> Graph:
    pytest.importorskip("diffusers")
    from models.tiny import make_tiny

    model = make_tiny(name)
    args, kwargs = model.call(0.5)
    return trace(model.model, args, kwargs)


def ranges(stack: Stack) -> list[tuple[int, int]]:
    return [(block.first, block.stop) for block in stack.blocks]


def lengths(stack: Stack) -> set[int]:
    return {stop - first for first, stop in ranges(stack)}


# ---- with and without metadata -----------------------------------------------------------------


@pytest.mark.parametrize("name", ["adaln", "cross_attention", "in_place", "two_stream"])
def test_toy_has_its_blocks_by_the_module_stack(name: str) -> None:
    stack = find_blocks(capture(*toy(name)))
    assert names(stack) == [f"blocks.{index}" for index in range(3)]
    assert stack.found_by == "module stack"


@pytest.mark.parametrize("name", ["adaln", "cross_attention"])
def test_toy_has_the_same_blocks_without_metadata(name: str) -> None:
    stack = find_blocks(stripped(toy(name)))
    assert stack.found_by == "repeated structure"
    assert ranges(stack) == ranges(find_blocks(capture(*toy(name))))


@pytest.mark.parametrize("name", ["dit", "pixart"])
def test_tiny_model_has_the_same_blocks_without_metadata(name: str) -> None:
    stack = find_blocks(stripped(tiny(name)))
    assert stack.found_by == "repeated structure"
    assert ranges(stack) == ranges(find_blocks(capture(*tiny(name))))
    assert len(stack) == 4


@pytest.mark.parametrize("by", ["module stack", "repeated structure"])
def test_blocks_held_as_attributes_are_found(by: str) -> None:
    graph = toy("attributes")
    stack = find_blocks(capture(*graph) if by == "module stack" else stripped(graph))
    assert stack.found_by == by
    # The same blocks as those of the first toy, but for where they live.
    (length,) = lengths(find_blocks(capture(*toy("adaln"))))
    assert (len(stack), lengths(stack)) == (6, {length})


def test_blocks_do_not_overlap() -> None:
    found = ranges(find_blocks(capture(*toy("two_stream"))))
    assert all(stop <= first for (_, stop), (first, _) in itertools.pairwise(found))


def test_stack_reads_as_its_first_and_last_block() -> None:
    assert str(find_blocks(capture(*toy("adaln")))) == (
        "3 blocks (blocks.0 .. blocks.2), found by module stack"
    )


# ---- containers --------------------------------------------------------------------------------


class SequentialBlock(AdaLNBlock):
    """A block whose costliest part is a long torch.nn.Sequential."""

    def __init__(self) -> None:
        super().__init__()
        self.mlp = nn.Sequential(*(nn.Linear(D, D) for _ in range(8)))


def test_sequential_inside_a_block_is_not_the_stack() -> None:
    model = AdaLNDenoiser(depth=0)
    model.blocks = nn.ModuleList(SequentialBlock() for _ in range(3))
    assert names(stack_of(model)) == ["blocks.0", "blocks.1", "blocks.2"]


def test_sequential_before_the_stack_is_not_the_stack() -> None:
    model = AdaLNDenoiser(depth=3)
    wide = (nn.Linear(4, 64), nn.GELU(), nn.Linear(64, 64), nn.GELU(), nn.Linear(64, D))
    model.embedding = nn.Sequential(*wide)  # type: ignore[assignment]
    assert names(stack_of(model)) == ["blocks.0", "blocks.1", "blocks.2"]


def test_blocks_in_a_sequential_are_found() -> None:
    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attention = models.Attention()

        def forward(self, x: Tensor) -> Tensor:
            return x + self.attention(x)

    class Model(AdaLNDenoiser):
        def __init__(self) -> None:
            super().__init__(depth=0)
            self.layers = nn.Sequential(Block(), Block(), Block())

        def forward(self, hidden_states: Tensor, timestep: Tensor) -> Tensor:
            conditioning = self.conditioning(timestep)
            x = self.embedding(hidden_states) + conditioning[:, None]
            return self.head(self.layers(x), conditioning)

    assert names(stack_of(Model())) == ["layers.0", "layers.1", "layers.2"]


def test_lists_inside_a_block_are_not_the_stack() -> None:
    # Each block of this toy holds its norms in a ModuleList.
    stack = find_blocks(capture(*toy("cross_attention")))
    assert names(stack)[0] == "blocks.0"


def test_part_of_a_block_called_again_later_is_not_in_the_block() -> None:
    model = AdaLNDenoiser(depth=3, reuse_first=True)
    stack = stack_of(model)
    found = ranges(stack)
    assert len(lengths(stack)) == 1
    assert [first for first, _ in found[1:]] == [stop for _, stop in found[:-1]]


def test_tiny_dit_reads_its_first_block_again_after_the_stack() -> None:
    captured = capture(*tiny("dit"))
    stack = find_blocks(captured)
    nodes = list(captured.module.graph.nodes)
    after = [
        str(path)
        for node in nodes[stack.blocks[-1].stop :]
        for path, _ in (node.meta.get("nn_module_stack") or {}).values()
    ]
    assert any(
        "blocks" in path and ".0.norm1" in path for path in after
    )  # what makes it a hard case
    assert len(lengths(stack)) == 1


class Looped(AdaLNDenoiser):
    """One block, called again and again."""

    def __init__(self, blocks: int, times: int) -> None:
        super().__init__(depth=blocks)
        self.times = times

    def forward(self, hidden_states: Tensor, timestep: Tensor) -> Tensor:
        x, conditioning = self.embedding(hidden_states), self.conditioning(timestep)
        for _ in range(self.times):
            for block in self.blocks:
                x = block(x, conditioning)
        return self.head(x, conditioning)


def test_one_block_called_four_times_counts_as_four() -> None:
    stack = stack_of(Looped(1, 4))
    assert names(stack) == ["blocks.0"] * 4
    assert lengths(stack) == lengths(find_blocks(capture(*toy("adaln"))))


def test_two_blocks_called_twice_count_as_four() -> None:
    assert names(stack_of(Looped(2, 2))) == ["blocks.0", "blocks.1", "blocks.0", "blocks.1"]


class TwoKinds(AdaLNDenoiser):
    """Two containers in a row, as in models with double and single blocks.

    `between` is what happens to the stream on the way: it "carries" on, is "longer" by a token,
    or is made "anew", of the same shape.
    """

    def __init__(self, first: int, second: int, between: str = "carries") -> None:
        super().__init__(depth=0)
        self.between = between
        self.paired = nn.ModuleList(AdaLNBlock() for _ in range(first))
        self.single = nn.ModuleList(CrossAttentionBlock() for _ in range(second))

    def forward(self, hidden_states: Tensor, timestep: Tensor) -> Tensor:
        x, conditioning = self.embedding(hidden_states), self.conditioning(timestep)
        context = torch.stack([conditioning, conditioning], dim=1)
        for block in self.paired:
            x = block(x, conditioning)
        mean = torch.sigmoid(x.mean(dim=1, keepdim=True))
        if self.between == "longer":
            x = torch.cat([mean, self.embedding(hidden_states)], dim=1)
        elif self.between == "anew":
            x = mean * self.embedding(hidden_states)
        for block in self.single:
            x = block(x, context, conditioning)
        return self.head(x[:, -models.T :], conditioning)


def test_two_containers_on_one_stream_are_joined() -> None:
    stack = stack_of(TwoKinds(2, 2))
    assert names(stack) == ["paired.0", "paired.1", "single.0", "single.1"]


def test_containers_on_other_streams_are_not_joined() -> None:
    assert names(stack_of(TwoKinds(2, 2, "longer"))) == ["single.0", "single.1"]


def test_containers_of_one_shape_on_other_streams_are_not_joined() -> None:
    assert names(stack_of(TwoKinds(2, 2, "anew"))) == ["single.0", "single.1"]


def test_container_that_costs_most_is_the_stack() -> None:
    assert names(stack_of(TwoKinds(5, 2, "longer"))) == [f"paired.{i}" for i in range(5)]


def test_tiny_flux_joins_its_two_containers() -> None:
    assert names(find_blocks(capture(*tiny("flux")))) == [
        *(f"transformer_blocks.{index}" for index in range(2)),
        *(f"single_transformer_blocks.{index}" for index in range(3)),
    ]


def test_container_of_one_block_joins_the_stack_before_it() -> None:
    assert names(stack_of(TwoKinds(3, 1))) == ["paired.0", "paired.1", "paired.2", "single.0"]


# ---- no blocks ---------------------------------------------------------------------------------


def test_model_without_blocks_is_refused() -> None:
    with pytest.raises(NoBlocksError, match=r"graph of \d+ operations.*nor operations repeat"):
        find_blocks(capture(*toy("no_blocks")))


def test_model_of_one_block_is_refused() -> None:
    with pytest.raises(NoBlocksError):
        stack_of(AdaLNDenoiser(depth=1))


def test_empty_graph_is_refused() -> None:
    module = fx.symbolic_trace(lambda x: x)
    with pytest.raises(NoBlocksError, match="graph of 0 operations"):
        find_blocks(capture(module, (noise(0, 2),)))
