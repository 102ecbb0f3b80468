"""Toys of one residual stream: plain adaLN blocks, and those that make them hard to cache.

The conditioning is made in the prologue and read by every block. The letters of the shapes are
those of parts.py.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.parts import Attention, B, C, Conditioning, D, Denoiser, T, mlp, modulate
from models.seeds import noise
from models.streams import SINGLE_STREAM, Call, Streams

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


class ClippedBlock(AdaLNBlock):
    """Adds up to `swing` to its float16 stream, and clips it to the range of the type."""

    def __init__(self, swing: float) -> None:
        super().__init__()
        self.swing, self.most = swing, torch.finfo(torch.float16).max

    def forward(self, hidden_states: Tensor, conditioning: Tensor) -> Tensor:
        change = torch.tanh(super().forward(hidden_states, conditioning) - hidden_states)
        return (hidden_states + self.swing * change).clip(-self.most, self.most)


class ClippedDenoiser(AdaLNDenoiser):
    """For float16, but for the timestep. By default every block crosses all of its range."""

    def __init__(self, depth: int = 6, *, swing: float = 65_504.0) -> None:
        super().__init__(depth=0)
        self.blocks = nn.ModuleList(ClippedBlock(swing) for _ in range(depth))

    def forward(self, hidden_states: Tensor, timestep: Tensor) -> Tensor:
        steps = timestep[:, None] / torch.arange(1, D + 1, device=timestep.device)
        x = self.embedding(hidden_states)
        conditioning = self.conditioning.mlp(steps.sin().to(x.dtype))
        for block in self.blocks:
            x = block(x, conditioning)
        return self.head(x, conditioning)

    def inputs(self, timestep: float, seed: int = 0) -> Call:
        (sample, steps), kwargs = super().inputs(timestep, seed)
        return (sample.half(), steps), kwargs


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
