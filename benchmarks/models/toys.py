"""Toy denoisers of width 32, one for each way in which a transformer can be built.

Every model has `inputs(timestep, seed)` -> (args, kwargs), `blocks_in_order()` and `streams`, so
that the oracle in tests/reference.py can drive it. Build them with `make(name)`: seeded, eval mode.
The letters of the shapes are those of parts.py.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.parts import (
    Attention,
    B,
    C,
    Conditioning,
    D,
    Denoiser,
    T,
    TextDenoiser,
    mlp,
    modulate,
)
from models.seeds import noise, randomise
from models.streams import IMAGE_TEXT, SINGLE_STREAM, Call, Streams

# ---- one stream, adaLN -------------------------------------------------------------------------


class AdaLNBlock(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.modulation, self.attention, self.mlp = nn.Linear(D, 6 * D), Attention(), mlp()

    def forward(self, hidden_states: Tensor, conditioning: Tensor) -> Tensor:
        m = self.modulation(F.silu(conditioning)).chunk(6, dim=-1)
        x = hidden_states
        x = x + m[2][:, None] * self.attention(modulate(x, m[0], m[1]))
        return x + m[5][:, None] * self.mlp(modulate(x, m[3], m[4]))


class AdaLNDenoiser(Denoiser):
    """One stream; the conditioning is made in the prologue and read by every block.

    With `reuse_first` the head reads a sub-module of block 0 again, after the last block.
    """

    def __init__(self, depth: int = 6, *, reuse_first: bool = False) -> None:
        super().__init__()
        self.reuse_first = reuse_first
        self.embedding, self.conditioning = nn.Linear(C, D), Conditioning()
        self.blocks = nn.ModuleList(AdaLNBlock() for _ in range(depth))
        self.modulation, self.out = nn.Linear(D, 2 * D), nn.Linear(D, C)

    def forward(self, hidden_states: Tensor, timestep: Tensor) -> Tensor:
        x, conditioning = self.embedding(hidden_states), self.conditioning(timestep)
        for block in self.blocks:
            x = block(x, conditioning)
        return self.head(x, conditioning)

    def head(self, x: Tensor, conditioning: Tensor) -> Tensor:
        if self.reuse_first:
            again = self.blocks[0].modulation(conditioning).chunk(6, dim=-1)
            conditioning = conditioning + again[0]
        shift, scale = self.modulation(F.silu(conditioning)).chunk(2, dim=-1)
        return self.out(modulate(x, shift, scale))


class AttributeStackDenoiser(AdaLNDenoiser):
    """The same blocks as attributes block_0 .. block_5, in no ModuleList."""

    def __init__(self) -> None:
        super().__init__(depth=0)
        self.block_0, self.block_1, self.block_2 = AdaLNBlock(), AdaLNBlock(), AdaLNBlock()
        self.block_3, self.block_4, self.block_5 = AdaLNBlock(), AdaLNBlock(), AdaLNBlock()

    def blocks_in_order(self) -> list[nn.Module]:
        return [self.get_submodule(f"block_{index}") for index in range(6)]

    def forward(self, hidden_states: Tensor, timestep: Tensor) -> Tensor:
        x, conditioning = self.embedding(hidden_states), self.conditioning(timestep)
        x = self.block_2(self.block_1(self.block_0(x, conditioning), conditioning), conditioning)
        x = self.block_5(self.block_4(self.block_3(x, conditioning), conditioning), conditioning)
        return self.head(x, conditioning)


# ---- two streams, joint attention --------------------------------------------------------------


class TwoStreamBlock(nn.Module):
    """Image and text attend together; the last block hands on no text."""

    def __init__(self, *, last: bool) -> None:
        super().__init__()
        self.last = last
        self.modulation, self.attention = nn.Linear(D, 4 * D), Attention()
        self.image_mlp, self.text_mlp = mlp(), None if last else mlp()

    def forward(
        self, hidden_states: Tensor, encoder_hidden_states: Tensor, conditioning: Tensor
    ) -> tuple[Tensor, Tensor | None]:
        m = self.modulation(conditioning).chunk(4, dim=-1)
        image, text = modulate(hidden_states, m[0], m[1]), F.layer_norm(encoder_hidden_states, (D,))
        joint = self.attention(torch.cat([text, image], dim=1))
        image = hidden_states + m[2][:, None] * joint[:, text.shape[1] :]
        image = image + m[3][:, None] * self.image_mlp(F.layer_norm(image, (D,)))
        if self.text_mlp is None:
            return image, None
        text = encoder_hidden_states + joint[:, : text.shape[1]]
        return image, text + self.text_mlp(F.layer_norm(text, (D,)))


class TwoStreamDenoiser(TextDenoiser):
    """Image and text streams of different lengths; blocks are called with keywords."""

    streams = IMAGE_TEXT

    def __init__(self, depth: int = 6) -> None:
        super().__init__()
        self.embedding, self.text_embedding = nn.Linear(C, D), nn.Linear(D, D)
        self.conditioning, self.out = Conditioning(), nn.Linear(D, C)
        self.blocks = nn.ModuleList(TwoStreamBlock(last=i == depth - 1) for i in range(depth))

    def forward(
        self, hidden_states: Tensor, timestep: Tensor, encoder_hidden_states: Tensor
    ) -> Tensor:
        image, text = self.embedding(hidden_states), self.text_embedding(encoder_hidden_states)
        conditioning = self.conditioning(timestep)
        for block in self.blocks:
            image, text = block(
                hidden_states=image, encoder_hidden_states=text, conditioning=conditioning
            )
        return self.out(F.layer_norm(image, (D,)))


# ---- cross-attention on patches ----------------------------------------------------------------


class CrossAttentionBlock(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attention, self.cross, self.mlp = Attention(), Attention(), mlp()
        self.norms = nn.ModuleList(nn.LayerNorm(D) for _ in range(3))

    def forward(self, hidden_states: Tensor, context: Tensor, conditioning: Tensor) -> Tensor:
        x = hidden_states
        x = x + self.attention(self.norms[0](x) * (1 + conditioning[:, None]))
        x = x + self.cross(self.norms[1](x), context)
        return x + self.mlp(self.norms[2](x))


class CrossAttentionDenoiser(TextDenoiser):
    """2-D latents (B, C, 8, 8) in patches of 2: the first block's input has transposed strides."""

    def __init__(self, depth: int = 6) -> None:
        super().__init__()
        self.patches, self.conditioning = nn.Conv2d(C, D, 2, stride=2), Conditioning()
        self.text_embedding, self.out = nn.Linear(D, D), nn.Linear(D, 4 * C)
        self.blocks = nn.ModuleList(CrossAttentionBlock() for _ in range(depth))

    def forward(
        self, hidden_states: Tensor, timestep: Tensor, encoder_hidden_states: Tensor
    ) -> Tensor:
        x = self.patches(hidden_states).flatten(2).transpose(1, 2)
        conditioning, text = self.conditioning(timestep), self.text_embedding(encoder_hidden_states)
        for block in self.blocks:
            x = block(x, text, conditioning)
        x = self.out(F.layer_norm(x, (D,))).unflatten(-1, (C, 2, 2)).unflatten(1, (4, 4))
        return x.permute(0, 3, 1, 4, 2, 5).reshape(hidden_states.shape)

    def inputs(self, timestep: float, seed: int = 0) -> Call:
        (_, steps), kwargs = super().inputs(timestep, seed)
        return (noise(seed, B, C, 8, 8), steps), kwargs


# ---- long skips --------------------------------------------------------------------------------


class LongSkipBlock(AdaLNBlock):
    """A block that first joins an earlier block's output, where it is given one."""

    def __init__(self, *, joins: bool) -> None:
        super().__init__()
        self.join = nn.Linear(2 * D, D) if joins else None

    def forward(
        self, hidden_states: Tensor, conditioning: Tensor, skip: Tensor | None = None
    ) -> Tensor:
        if self.join is not None:
            hidden_states = self.join(torch.cat([hidden_states, skip], dim=-1))
        return super().forward(hidden_states, conditioning)


class LongSkipDenoiser(AdaLNDenoiser):
    """U-shaped: block i of the first half is joined again by block depth-1-i of the second."""

    def __init__(self, depth: int = 6) -> None:
        super().__init__(depth=0)
        self.blocks = nn.ModuleList(LongSkipBlock(joins=i >= depth // 2) for i in range(depth))

    def forward(self, hidden_states: Tensor, timestep: Tensor) -> Tensor:
        x, conditioning = self.embedding(hidden_states), self.conditioning(timestep)
        skips: list[Tensor] = []
        half = len(self.blocks) // 2
        for block in self.blocks[:half]:
            x = block(x, conditioning)
            skips.append(x)
        for block in self.blocks[half:]:
            x = block(x, conditioning, skips.pop())
        return self.head(x, conditioning)


# ---- hard cases --------------------------------------------------------------------------------


class InPlaceBlock(AdaLNBlock):
    """Changes its live-in in place and returns it."""

    def forward(self, hidden_states: Tensor, conditioning: Tensor) -> Tensor:
        m = self.modulation(F.silu(conditioning)).chunk(6, dim=-1)
        hidden_states.add_(m[2][:, None] * self.attention(modulate(hidden_states, m[0], m[1])))
        hidden_states += m[5][:, None] * self.mlp(modulate(hidden_states, m[3], m[4]))
        return hidden_states


class InPlaceDenoiser(AdaLNDenoiser):
    """Every block works in place on the residual stream."""

    def __init__(self, depth: int = 6) -> None:
        super().__init__(depth=0)
        self.blocks = nn.ModuleList(InPlaceBlock() for _ in range(depth))


class SideValueBlock(AdaLNBlock):
    """Hands on the mean of its tokens besides the stream."""

    def forward(  # type: ignore[override]
        self, hidden_states: Tensor, conditioning: Tensor
    ) -> tuple[Tensor, Tensor]:
        x = super().forward(hidden_states, conditioning)
        return x, torch.sigmoid(x).mean(dim=1)


class SideValueDenoiser(AdaLNDenoiser):
    """The epilogue reads the side value of one block: no span may hold that block."""

    streams = Streams(SINGLE_STREAM.take, lambda s: (s[0], None), lambda out: (out[0],))

    def __init__(self, depth: int = 6, *, read: int = 2) -> None:
        super().__init__(depth=0)
        self.read = read
        self.blocks = nn.ModuleList(SideValueBlock() for _ in range(depth))

    def forward(self, hidden_states: Tensor, timestep: Tensor) -> Tensor:
        x, conditioning = self.embedding(hidden_states), self.conditioning(timestep)
        side = conditioning
        for index, block in enumerate(self.blocks):
            x, value = block(x, conditioning)
            side = value if index == self.read else side
        return self.head(x, conditioning + side)


class ControlledDenoiser(AdaLNDenoiser):
    """After each block a residual of a control network is added; two blocks share one.

    With `own` the network is part of the model: a smaller stack that runs first, on a hint.
    """

    def __init__(self, depth: int = 4, *, own: bool = False) -> None:
        super().__init__(depth)
        shared = (depth + 1) // 2
        self.control = nn.ModuleList(AdaLNBlock() for _ in range(shared if own else 0))
        self.exits = nn.ModuleList(nn.Linear(D, D) for _ in self.control)

    def forward(  # type: ignore[override]
        self, hidden_states: Tensor, timestep: Tensor, residuals: list[Tensor]
    ) -> Tensor:
        x, conditioning = self.embedding(hidden_states), self.conditioning(timestep)
        if len(self.control):
            state, given = x + residuals[0], []
            for block, leave in zip(self.control, self.exits, strict=True):
                state = block(state, conditioning)
                given.append(leave(state))
            residuals = given
        for index, block in enumerate(self.blocks):
            x = block(x, conditioning) + residuals[index // 2]
        return self.head(x, conditioning)

    def inputs(self, timestep: float, seed: int = 0) -> Call:
        args, _ = super().inputs(timestep, seed)
        shared = (len(self.blocks) + 1) // 2
        return args, {"residuals": [noise(100 * seed + at, B, T, D) for at in range(shared)]}


class NoBlocksDenoiser(Denoiser):
    """Layers of different widths and kinds: nothing repeats."""

    def __init__(self) -> None:
        super().__init__()
        self.conditioning, self.first, self.second = (
            Conditioning(),
            nn.Linear(C, D),
            nn.Linear(D, 48),
        )
        self.third, self.out = nn.Conv1d(48, 24, 3, padding=1), nn.Linear(24, C)

    def blocks_in_order(self) -> list[nn.Module]:
        return []

    def forward(self, hidden_states: Tensor, timestep: Tensor) -> Tensor:
        x = F.gelu(self.first(hidden_states) + self.conditioning(timestep)[:, None])
        x = torch.tanh(self.third(self.second(x).transpose(1, 2)))
        return self.out(x.transpose(1, 2))


TOYS: dict[str, type[Denoiser]] = {
    "adaln": AdaLNDenoiser,
    "attributes": AttributeStackDenoiser,
    "two_stream": TwoStreamDenoiser,
    "cross_attention": CrossAttentionDenoiser,
    "long_skip": LongSkipDenoiser,
    "in_place": InPlaceDenoiser,
    "side_value": SideValueDenoiser,
    "no_blocks": NoBlocksDenoiser,
}


def make(name: str, seed: int = 0, **options: Any) -> Denoiser:
    """A toy with seeded random weights, in eval mode, without gradients."""
    return randomise(TOYS[name](**options), seed)


def make_controlled(seed: int = 0, **options: Any) -> ControlledDenoiser:
    """The toy with residuals, which is driven like no other: its residuals change at every step."""
    return randomise(ControlledDenoiser(**options), seed)
