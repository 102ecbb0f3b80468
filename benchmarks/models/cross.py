"""A toy with cross-attention, whose attention is one operator or is written out.

Shapes:
    B batch 2 (for guidance its halves are one sample each), T tokens, S tokens of text, D width.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from models.seeds import noise, randomise
from models.streams import Call

B, T, S, D, H = 2, 8, 5, 16, 2  # H heads


class Attention(nn.Module):
    """By `scaled_dot_product_attention`, or by two batched products and a softmax."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind
        self.q, self.k, self.v, self.out = (nn.Linear(D, D) for _ in range(4))

    def forward(self, x: Tensor, context: Tensor, mask: Tensor | None = None) -> Tensor:
        q, k, v = (self._heads(one) for one in (self.q(x), self.k(context), self.v(context)))
        if self.kind == "products":
            scores = torch.softmax(torch.bmm(q.flatten(0, 1), k.flatten(0, 1).mT), dim=-1)
            mixed = torch.bmm(scores, v.flatten(0, 1)).unflatten(0, (-1, H))
        elif self.kind == "named":
            function = nn.functional.scaled_dot_product_attention
            mixed = function(attn_mask=mask, value=v, key=k, query=q)
        else:
            mixed = nn.functional.scaled_dot_product_attention(q, k, v, mask)
        result: Tensor = self.out(mixed.transpose(1, 2).flatten(2))
        return result

    def _heads(self, value: Tensor) -> Tensor:
        return value.unflatten(2, (H, D // H)).transpose(1, 2)


class Block(nn.Module):
    def __init__(self, kind: str, end: str) -> None:
        super().__init__()
        self.kind, self.end = kind, end
        self.attn1, self.attn2 = Attention(kind), Attention(kind)
        self.mlp, self.merge = nn.Linear(D, D), nn.Linear(2 * D, D)

    def forward(self, x: Tensor, text: Tensor, time: Tensor, mask: Tensor | None) -> Tensor:
        # A mask from conditioning does not make self-attention cross-attention.
        x = x + self.attn1(x, x, mask) * time
        given = self.attn2(x, text)
        if self.end == "joined":
            return x + self.merge(torch.cat([given, torch.tanh(x)], dim=-1))
        if self.end == "gated":
            given = torch.sigmoid(time) * given
        x = x + given
        return x + self.mlp(torch.tanh(x)) * time


class CrossDenoiser(nn.Module):
    """Four blocks of self-attention, cross-attention to projected text, and a layer."""

    def __init__(
        self, kind: str = "attention", end: str = "added", *, masked: bool = False
    ) -> None:
        super().__init__()
        self.text, self.masked = nn.Linear(D, D), masked
        self.blocks = nn.ModuleList(Block(kind, end) for _ in range(4))
        self.last = nn.Linear(D, D)

    def inputs(self, progress: float = 0.0, seed: int = 0) -> Call:
        """One call, at a place of its trajectory from 0.0 to 1.0."""
        mask = {"mask": noise(98, B, 1, T, T)} if self.masked else {}
        time = torch.full((B,), 1.0 - progress)
        return (noise(seed, B, T, D), time, noise(99, B, S, D)), mask

    def forward(
        self, sample: Tensor, timestep: Tensor, text: Tensor, mask: Tensor | None = None
    ) -> Tensor:
        text, x = self.text(text), sample
        for block in self.blocks:
            x = block(x, text, timestep[:, None, None], mask)
        result: Tensor = self.last(torch.tanh(x))
        return result


def cross_denoiser(
    kind: str = "attention", end: str = "added", *, masked: bool = False
) -> CrossDenoiser:
    """The toy, seeded: `kind` is how attention is written, `end` what becomes of its output."""
    return randomise(CrossDenoiser(kind, end, masked=masked))
