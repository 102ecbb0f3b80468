"""Tiny models of diffusers with random weights: four or five blocks of width 32, float32.

`make_tiny(name)` gives the model, its blocks in execution order, how they are called (`streams`,
for the oracle in tests/reference.py), and `call(level, seed)` -> (args, kwargs).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import nn

from models.calls import Sizes, call_of
from models.diffusion import build
from models.seeds import randomise
from models.streams import Call, Streams, blocks_of, seams_of, streams_of

TINY_NAMES = ("dit", "pixart", "sd3", "flux", "wan", "cogvideox")
SIZES = Sizes()
BATCH, TEXT, WIDTH = SIZES.batch, SIZES.text, 32


@dataclass(frozen=True)
class Tiny:
    """A tiny model and how to drive it; what `call` takes is described in calls.py."""

    name: str
    model: nn.Module
    blocks: tuple[nn.Module, ...]
    streams: Streams | tuple[Streams, ...]
    call: Callable[..., Call]
    seams: tuple[int, ...] = ()


def tiny_model(name: str, seed: int = 0, **changes: Any) -> nn.Module:
    """A row of configs.toml, seeded, in eval mode; every parameter is random, none is zero."""
    return randomise(build(name, **changes), seed)


def make_tiny(name: str, seed: int = 0) -> Tiny:
    """The named model, and how to drive it."""
    model = tiny_model(name, seed)
    call, seams = call_of(model, SIZES), seams_of(model)
    return Tiny(name, model, blocks_of(model), streams_of(model), call, seams)
