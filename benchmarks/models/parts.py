"""What the toys are made of, and the inputs that they take.

Shapes:
    B batch 2, T image tokens 16, S text tokens 5, D width 32, C channels 4.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.seeds import noise
from models.streams import SINGLE_STREAM, Call, Streams

B, T, S, D, C = 2, 16, 5, 32, 4


def mlp(width: int = D) -> nn.Sequential:
    return nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))


def modulate(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    return F.layer_norm(x, (D,)) * (1 + scale[:, None]) + shift[:, None]


class Attention(nn.Module):
    """Attention of two heads; keys and values come from `context` where it is given."""

    def __init__(self) -> None:
        super().__init__()
        self.query, self.key_value, self.out = nn.Linear(D, D), nn.Linear(D, 2 * D), nn.Linear(D, D)

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        key, value = self.key_value(x if context is None else context).chunk(2, dim=-1)
        heads = [t.unflatten(-1, (2, -1)).transpose(1, 2) for t in (self.query(x), key, value)]
        return self.out(F.scaled_dot_product_attention(*heads).transpose(1, 2).flatten(2))


class Conditioning(nn.Module):
    """Sinusoidal features of the timestep (B,) through an MLP: (B, D)."""

    def __init__(self) -> None:
        super().__init__()
        self.mlp = mlp()

    def forward(self, timestep: Tensor) -> Tensor:
        steps = torch.arange(D // 2, device=timestep.device)
        angles = timestep.float()[:, None] * torch.exp(-math.log(10_000) * steps / (D // 2))
        return self.mlp(torch.cat([angles.cos(), angles.sin()], dim=-1))


class Denoiser(nn.Module):
    """What the toys share: token inputs, a stack in `blocks`, one residual stream."""

    streams: Streams = SINGLE_STREAM
    blocks: nn.ModuleList

    def blocks_in_order(self) -> list[nn.Module]:
        return list(self.blocks)

    def inputs(self, timestep: float, seed: int = 0) -> Call:
        return (noise(seed, B, T, C), torch.full((B,), timestep)), {}


class TextDenoiser(Denoiser):
    """A toy that also takes text tokens."""

    def inputs(self, timestep: float, seed: int = 0) -> Call:
        args, _ = super().inputs(timestep, seed)
        return args, {"encoder_hidden_states": noise(1_000, B, S, D)}
