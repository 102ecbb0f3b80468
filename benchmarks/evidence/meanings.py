"""What values of images mean: which way is better, and which differences are too small to matter.

The margins were chosen before any schedule was judged, and not from data: each is about what
a reader would not care for.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final


@dataclass(frozen=True, kw_only=True, slots=True)
class Measure:
    """What an image's value means; `scale` and `digits` are how it is shown.

    Two methods whose difference is surely within `margin` are the same.
    """

    title: str
    higher: bool
    scale: float
    digits: int
    margin: float


MEASURES: Final[Mapping[str, Measure]] = MappingProxyType(
    {
        "plain_psnr": Measure(
            title="to {steps} plain steps, dB", higher=True, scale=1, digits=1, margin=0.25
        ),
        "fine_psnr": Measure(
            title="to {fine} plain steps, dB", higher=True, scale=1, digits=1, margin=0.25
        ),
        "right": Measure(title="right, %", higher=True, scale=100, digits=1, margin=0.01),
        "drawing": Measure(
            title="off the exact drawing, %", higher=False, scale=100, digits=3, margin=0.0001
        ),
        "kid": Measure(
            title="KID-EffLite0 x 1000", higher=False, scale=1000, digits=2, margin=0.0005
        ),
    }
)
