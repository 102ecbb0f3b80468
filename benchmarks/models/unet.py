"""A toy U-Net: four skips, of which the first and the last join what has their own shape.

Shapes:
    B batch 2, C channels 4, H height and width 8.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.parts import B, C, Conditioning, D
from models.seeds import noise
from models.streams import Call

H, WIDE, NARROW = 8, 16, 8


class ConvBlock(nn.Module):
    """A residual block of two convolutions that reads the conditioning."""

    def __init__(self, given: int, made: int) -> None:
        super().__init__()
        self.norm, self.time = nn.GroupNorm(2, given), nn.Linear(D, made)
        self.first = nn.Conv2d(given, made, 3, padding=1)
        self.second = nn.Conv2d(made, made, 3, padding=1)
        self.shortcut = nn.Identity() if given == made else nn.Conv2d(given, made, 1)

    def forward(self, x: Tensor, conditioning: Tensor) -> Tensor:
        h = self.first(F.silu(self.norm(x))) + self.time(conditioning)[:, :, None, None]
        return self.shortcut(x) + self.second(F.silu(h))


class UNetDenoiser(nn.Module):
    """Down and up again over two resolutions.

    `late` computes the conditioning behind the first convolution; `residuals` takes what a control
    network adds to the skips and to the middle; `filtered` joins something made of each skip;
    `returned` also gives what comes out of the middle. `joins` are the modules that take a
    skip, the outermost first.
    """

    def __init__(
        self,
        *,
        late: bool = False,
        residuals: bool = False,
        returned: bool = False,
        filtered: bool = False,
    ) -> None:
        super().__init__()
        self.late, self.residuals, self.returned = late, residuals, returned
        self.filtered = filtered
        self.conditioning = Conditioning()
        self.stem = nn.Conv2d(C, NARROW, 3, padding=1)
        self.outer, self.inner = ConvBlock(NARROW, NARROW), ConvBlock(NARROW, WIDE)
        self.down = nn.Conv2d(NARROW, NARROW, 3, stride=2, padding=1)
        self.middle = ConvBlock(WIDE, WIDE)
        self.up = nn.Conv2d(WIDE, WIDE, 3, padding=1)
        self.joins = nn.ModuleList(
            (
                ConvBlock(2 * NARROW, NARROW),
                ConvBlock(WIDE + NARROW, NARROW),
                ConvBlock(WIDE + NARROW, WIDE),
                ConvBlock(2 * WIDE, WIDE),
            )
        )
        self.out = nn.Conv2d(NARROW, C, 3, padding=1)

    def inputs(self, timestep: float, seed: int = 0) -> Call:
        """The inputs of one call; residuals are others at every call."""
        kwargs = {}
        if self.residuals:
            shapes = ((NARROW, H), (NARROW, H), (NARROW, H // 2), (WIDE, H // 2), (WIDE, H // 2))
            made = (
                noise(seed + at, B, width, size, size) for at, (width, size) in enumerate(shapes)
            )
            kwargs["residuals"] = tuple(made)
        return (noise(seed, B, C, H, H), torch.full((B,), timestep)), kwargs

    def forward(
        self, sample: Tensor, timestep: Tensor, residuals: tuple[Tensor, ...] = ()
    ) -> Tensor | tuple[Tensor, Tensor]:
        conditioning = None if self.late else self.conditioning(timestep)
        skips = [self.stem(sample)]
        conditioning = self.conditioning(timestep) if conditioning is None else conditioning
        skips.append(self.outer(skips[-1], conditioning))
        skips.append(self.down(skips[-1]))
        skips.append(self.inner(skips[-1], conditioning))
        middle = x = self.middle(skips[-1], conditioning)
        if residuals:
            skips = [skip + given for skip, given in zip(skips, residuals, strict=False)]
            x = x + residuals[-1]
        for at in reversed(range(len(skips))):
            if at == 1:
                x = self.up(F.interpolate(x, scale_factor=2.0))
            skip = torch.tanh(skips[at]) if self.filtered else skips[at]
            x = self.joins[at](torch.cat([x, skip], dim=1), conditioning)
        result = self.out(F.silu(x))
        return (result, middle) if self.returned else result
