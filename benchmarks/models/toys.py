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

from models.adaln import (
    AdaLNDenoiser,
    AttributeStackDenoiser,
    ControlledDenoiser,
    InPlaceDenoiser,
    LongSkipDenoiser,
    SideValueDenoiser,
)
from models.parts import (
    Attention,
    B,
    C,
    Conditioning,
    D,
    Denoiser,
    TextDenoiser,
    mlp,
    modulate,
)
from models.seeds import noise, randomise
from models.streams import IMAGE_TEXT, Call

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


# ---- nothing repeats --------------------------------------------------------------------------


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
