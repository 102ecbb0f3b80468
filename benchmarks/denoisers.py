"""Real sizes with random weights: they prove speed, never quality. Nothing is downloaded.

Each entry builds a model by its class in diffusers and gives the inputs of one call, with both
halves of classifier-free guidance in one batch.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import DiTTransformer2DModel, PixArtTransformer2DModel, SD3Transformer2DModel

from deltapass.demo.embedded import load_embedded

CallInputs = tuple[tuple[Any, ...], dict[str, Any]]


@dataclass(frozen=True)
class Denoiser:
    """A model and a function from a timestep (0..1000) to the inputs of one call."""

    name: str
    model: torch.nn.Module
    inputs: Callable[[float], CallInputs]


def dit(
    device: str, dtype: torch.dtype, *, width: int = 1152, heads: int = 16, size: int = 32
) -> Denoiser:
    """DiT-XL/2 by default: 28 blocks, width 1152; size 32 is 256 px, 64 is 512 px."""
    model = _build(
        DiTTransformer2DModel,
        device,
        dtype,
        num_attention_heads=heads,
        attention_head_dim=width // heads,
        in_channels=4,
        out_channels=8,
        num_layers=28,
        sample_size=size,
        num_embeds_ada_norm=1000,
    )
    latents = _noise((2, 4, size, size), device, dtype)
    labels = torch.tensor([207, 1000], device=device)

    def inputs(timestep: float) -> CallInputs:
        time = torch.full((2,), timestep, device=device)
        return (latents,), {"timestep": time, "class_labels": labels, "return_dict": False}

    return Denoiser(f"DiT width {width}, {size * 8} px", model, inputs)


def pixart(device: str, dtype: torch.dtype) -> Denoiser:
    """PixArt-alpha 1024 px: 28 blocks, width 1152, 4096 image and 120 text tokens."""
    model = _build(
        PixArtTransformer2DModel,
        device,
        dtype,
        sample_size=128,
        num_attention_heads=16,
        attention_head_dim=72,
        cross_attention_dim=1152,
        caption_channels=4096,
        in_channels=4,
        out_channels=8,
        use_additional_conditions=True,
    )
    latents = _noise((2, 4, 128, 128), device, dtype)
    text = _noise((2, 120, 4096), device, dtype)
    added = {
        "resolution": torch.full((2, 2), 1024.0, device=device, dtype=dtype),
        "aspect_ratio": torch.ones(2, 1, device=device, dtype=dtype),
    }

    def inputs(timestep: float) -> CallInputs:
        return (latents,), {
            "encoder_hidden_states": text,
            "timestep": torch.full((2,), timestep, device=device),
            "added_cond_kwargs": added,
            "return_dict": False,
        }

    return Denoiser("PixArt-alpha 1024 px", model, inputs)


def sd3(device: str, dtype: torch.dtype) -> Denoiser:
    """SD3 medium 1024 px: 24 blocks, width 1536, 4096 image and 333 text tokens."""
    model = _build(
        SD3Transformer2DModel,
        device,
        dtype,
        num_layers=24,
        num_attention_heads=24,
        caption_projection_dim=1536,
        pos_embed_max_size=192,
        sample_size=128,
    )
    latents = _noise((2, 16, 128, 128), device, dtype)
    text = _noise((2, 333, 4096), device, dtype)
    pooled = _noise((2, 2048), device, dtype)

    def inputs(timestep: float) -> CallInputs:
        return (), {
            "hidden_states": latents,
            "encoder_hidden_states": text,
            "pooled_projections": pooled,
            "timestep": torch.full((2,), timestep, device=device),
            "return_dict": False,
        }

    return Denoiser("SD3 1024 px", model, inputs)


def embedded(device: str, dtype: torch.dtype) -> Denoiser:
    """The trained model of the package on 20 images with guidance, as in the demo."""
    model = load_embedded(dtype=dtype).transformer.to(device)
    sample, labels = _noise((40, 1, 28, 28), device, dtype), torch.zeros(40, dtype=torch.int64)

    def inputs(timestep: float) -> CallInputs:
        time = torch.full((40,), timestep, device=device)
        given = {"timestep": time, "class_labels": labels.to(device), "return_dict": False}
        return (sample,), given

    return Denoiser("embedded, 20 images", model, inputs)


DENOISERS: dict[str, Callable[[str, torch.dtype], Denoiser]] = {
    "dit-xl-256": dit,
    "dit-xl-512": lambda device, dtype: dit(device, dtype, size=64),
    "dit-s-256": lambda device, dtype: dit(device, dtype, width=384, heads=6),
    "dit-tiny": lambda device, dtype: dit(device, dtype, width=64, heads=2, size=8),
    "embedded": embedded,
    "pixart-1024": pixart,
    "sd3-1024": sd3,
}


def _build(kind: type, device: str, dtype: torch.dtype, **config: Any) -> torch.nn.Module:
    torch.manual_seed(0)
    with torch.device(device):
        model = kind(**config).to(dtype).eval().requires_grad_(False)
    # Output layers that start at zero would hide any error.
    for parameter in model.parameters():
        if parameter.device.type != "meta" and not parameter.any():
            torch.nn.init.normal_(parameter, std=0.02)
    return model


def _noise(shape: tuple[int, ...], device: str, dtype: torch.dtype) -> torch.Tensor:
    if device == "meta":
        return torch.empty(shape, device=device, dtype=dtype)
    generator = torch.Generator().manual_seed(0)
    return torch.randn(shape, generator=generator).to(device, dtype)
