"""compiler/modules.py: blocks are found however they are held."""

from __future__ import annotations

from typing import Any

import pytest
from blocks_case import Residual, names, stack_of
from models import AdaLNBlock, AdaLNDenoiser, CrossAttentionBlock, D
from torch import Tensor, nn


class Held(AdaLNDenoiser):
    """Six blocks; `hold` puts them into the model and gives them back in order."""

    def __init__(self) -> None:
        super().__init__(depth=0)
        self.hold([AdaLNBlock() for _ in range(6)])

    def hold(self, blocks: list[nn.Module]) -> None:
        raise NotImplementedError

    def held(self) -> list[nn.Module]:
        raise NotImplementedError

    def forward(self, hidden_states: Tensor, timestep: Tensor) -> Tensor:
        x, conditioning = self.embedding(hidden_states), self.conditioning(timestep)
        for block in self.held():
            x = block(x, conditioning)
        return self.head(x, conditioning)


class InDict(Held):
    def hold(self, blocks: list[nn.Module]) -> None:
        self.parts = nn.ModuleDict(dict(zip("abcdef", blocks, strict=True)))

    def held(self) -> list[nn.Module]:
        return list(self.parts.values())


class UnderNames(Held):
    NAMES = ("down0", "down1", "middle", "up0", "up1", "last")

    def hold(self, blocks: list[nn.Module]) -> None:
        for name, block in zip(self.NAMES, blocks, strict=True):
            setattr(self, name, block)

    def held(self) -> list[nn.Module]:
        return [getattr(self, name) for name in self.NAMES]


class OneEach(Held):
    """Lists of a single block."""

    def hold(self, blocks: list[nn.Module]) -> None:
        for index, block in enumerate(blocks):
            setattr(self, f"stage{index}", nn.ModuleList([block]))

    def held(self) -> list[nn.Module]:
        return [getattr(self, f"stage{index}")[0] for index in range(6)]


class ListOfLists(Held):
    def hold(self, blocks: list[nn.Module]) -> None:
        self.stages = nn.ModuleList(nn.ModuleList(blocks[at : at + 3]) for at in (0, 3))

    def held(self) -> list[nn.Module]:
        return [block for stage in self.stages for block in stage]  # type: ignore[union-attr]


class Stage(nn.Module):
    def __init__(self, blocks: list[nn.Module]) -> None:
        super().__init__()
        self.inner = nn.ModuleList(blocks)

    def forward(self, x: Tensor, conditioning: Tensor) -> Tensor:
        for block in self.inner:
            x = block(x, conditioning)
        return x


class Stages(Held):
    """Modules that run several blocks each."""

    def hold(self, blocks: list[nn.Module]) -> None:
        self.stages = nn.ModuleList(Stage(blocks[at : at + 2]) for at in (0, 2, 4))

    def held(self) -> list[nn.Module]:
        return list(self.stages)


class Within(Held):
    """All of it in one module more."""

    def hold(self, blocks: list[nn.Module]) -> None:
        self.trunk = Stage(blocks)

    def held(self) -> list[nn.Module]:
        return [self.trunk]


WAYS: dict[type[Held], list[str]] = {
    InDict: list("abcdef"),
    UnderNames: list(UnderNames.NAMES),
    OneEach: [f"stage{index}.0" for index in range(6)],
    ListOfLists: [f"{stage}.{index}" for stage in range(2) for index in range(3)],
    Stages: ["inner.0", "inner.1"] * 3,
    Within: [f"inner.{index}" for index in range(6)],
}


@pytest.mark.parametrize("held", WAYS)
def test_blocks_are_found_however_they_are_held(held: type[Held]) -> None:
    stack = stack_of(held())
    assert names(stack) == WAYS[held]
    assert (stack.found_by, stack.seams) == ("module stack", ())


class Mixed(AdaLNDenoiser):
    """Blocks of three kinds under names of no order, one of them tiny, a dropout between."""

    def __init__(self) -> None:
        super().__init__(depth=0)
        self.z, self.a, self.m = AdaLNBlock(), CrossAttentionBlock(), Residual(D)
        self.drop, self.k = nn.Dropout(), CrossAttentionBlock()

    def forward(self, hidden_states: Tensor, timestep: Tensor) -> Tensor:
        x, c = self.embedding(hidden_states), self.conditioning(timestep)
        x = self.m(self.a(self.z(x, c), c[:, None], c))
        return self.head(self.k(self.drop(x), c[:, None], c), c)


def test_blocks_of_several_classes_make_one_stack() -> None:
    assert names(stack_of(Mixed())) == ["z", "a", "m", "k"]


class Parts(nn.Module):
    """A block made of residual modules, whose parts are no blocks."""

    def __init__(self) -> None:
        super().__init__()
        self.attention, self.mlp = CrossAttentionBlock(), Residual(D, 3)

    def forward(self, x: Tensor, conditioning: Tensor) -> Tensor:
        return self.mlp(self.attention(x, conditioning[:, None], conditioning))


def test_residual_parts_of_a_block_are_no_blocks() -> None:
    model = AdaLNDenoiser(depth=0)
    model.blocks = nn.ModuleList(Parts() for _ in range(3))
    assert names(stack_of(model)) == ["blocks.0", "blocks.1", "blocks.2"]


class Interleaved(AdaLNDenoiser):
    """Every other block works on tokens of its own, and is part of no stack."""

    def __init__(self) -> None:
        super().__init__(depth=0)
        self.blocks = nn.ModuleList(AdaLNBlock() for _ in range(4))
        self.others = nn.ModuleList(Residual(8, 1) for _ in range(4))
        self.enter, self.leave = nn.Linear(D, 8), nn.Linear(8, D)

    def forward(self, hidden_states: Tensor, timestep: Tensor) -> Tensor:
        x, c = self.embedding(hidden_states), self.conditioning(timestep)
        other: Any = self.enter(c)
        for block, small in zip(self.blocks, self.others, strict=True):
            x, other = block(x, c), small(other)
        return self.head(x, c + self.leave(other))


def test_blocks_of_another_stream_between_are_left_out() -> None:
    assert names(stack_of(Interleaved())) == [f"blocks.{index}" for index in range(4)]
