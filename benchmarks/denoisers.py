"""Real sizes with random weights: they prove speed, never quality. Nothing is downloaded.

Each entry builds a model of diffusers from a row of models/configs.toml and gives the inputs of one
call, with both halves of classifier-free guidance in one batch.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from models.calls import Sizes, call_of
from models.diffusion import build
from models.streams import Call

from deltapass.demo.embedded import load_embedded


@dataclass(frozen=True)
class Denoiser:
    """A model and a function from a timestep (0..1000) to the inputs of one call."""

    name: str
    model: torch.nn.Module
    inputs: Callable[[float], Call]


def denoiser(row: str, title: str, device: str, dtype: torch.dtype, *, text: int = 0) -> Denoiser:
    """A row of the table, with so many tokens of text."""
    model = build(row, device=device).to(dtype).eval().requires_grad_(False)
    # Output layers that start at zero would hide any error.
    for parameter in model.parameters():
        if device != "meta" and not parameter.any():
            torch.nn.init.normal_(parameter, std=0.02)
    call = call_of(model, Sizes(text=text, padding=0, whole=False, device=device, dtype=dtype))
    return Denoiser(title, model, lambda timestep: call(timestep / 1000))


def embedded(device: str, dtype: torch.dtype) -> Denoiser:
    """The trained model of the package on 20 images with guidance, as in the demo."""
    model = load_embedded(dtype=dtype).transformer.to(device)
    call = call_of(model, Sizes(batch=40, whole=False, device=device, dtype=dtype))
    return Denoiser("embedded, 20 images", model, lambda timestep: call(timestep / 1000))


# Name in the command line -> device, type -> denoiser.
DENOISERS: dict[str, Callable[[str, torch.dtype], Denoiser]] = {
    "dit-xl-256": partial(denoiser, "dit-xl-256", "DiT width 1152, 256 px"),
    "dit-xl-512": partial(denoiser, "dit-xl-512", "DiT width 1152, 512 px"),
    "dit-s-256": partial(denoiser, "dit-s-256", "DiT width 384, 256 px"),
    "dit-tiny": partial(denoiser, "dit-tiny", "DiT width 64, 64 px"),
    "embedded": embedded,
    "flux-57": partial(denoiser, "flux-57", "Flux's 57 blocks, width 128", text=32),
    "pixart-1024": partial(denoiser, "pixart-1024", "PixArt-alpha 1024 px", text=120),
    "sd3-1024": partial(denoiser, "sd3-1024", "SD3 1024 px", text=333),
}
