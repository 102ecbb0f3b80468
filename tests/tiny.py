"""Tiny models of diffusers with random weights, built by class: four layers of width 32, float32.

`make_tiny(name)` gives the model, its blocks in execution order, how they are called (`streams`,
for the oracle in reference.py), and `call(level, seed)` -> (args, kwargs) with realistic inputs.
Import this module only behind `pytest.importorskip("diffusers")`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import (
    CogVideoXTransformer3DModel,
    DiTTransformer2DModel,
    FluxTransformer2DModel,
    PixArtTransformer2DModel,
    SD3Transformer2DModel,
    WanTransformer3DModel,
)
from models import noise, randomise
from reference import IMAGE_TEXT, SINGLE_STREAM, TEXT_IMAGE, Call, Streams
from torch import nn

BATCH, TEXT, WIDTH = 2, 6, 32
HEADS: dict[str, int] = {"num_attention_heads": 2, "attention_head_dim": 16}


@dataclass(frozen=True)
class Tiny:
    """A tiny model and how to drive it.

    `call(level, seed)` takes a noise level from 1.0 (noisiest) to 0.0; the timestep is on the
    model's own scale. The seed changes the latent only: text and labels stay, as in sampling.
    """

    name: str
    model: nn.Module
    blocks: tuple[nn.Module, ...]
    streams: Streams
    call: Callable[..., Call]


def _text() -> torch.Tensor:
    return noise(1_000, BATCH, TEXT, WIDTH)


def _whole_steps(level: float) -> torch.Tensor:
    """0 .. 999, integers, one for each sample."""
    return torch.full((BATCH,), round(999 * level), dtype=torch.int64)


def _dit() -> Tiny:
    model = DiTTransformer2DModel(
        **HEADS, in_channels=4, num_layers=4, sample_size=8, patch_size=2, num_embeds_ada_norm=1000
    )

    def call(level: float, seed: int = 0) -> Call:
        labels = torch.tensor([7, 1000])  # a class, and the null class of guidance
        kwargs = {"timestep": _whole_steps(level), "class_labels": labels, "return_dict": False}
        return (noise(seed, BATCH, 4, 8, 8),), kwargs

    return Tiny("dit", model, tuple(model.transformer_blocks), SINGLE_STREAM, call)


def _pixart() -> Tiny:
    model = PixArtTransformer2DModel(
        **HEADS,
        in_channels=4,
        out_channels=8,
        num_layers=4,
        sample_size=8,
        patch_size=2,
        cross_attention_dim=WIDTH,
        caption_channels=WIDTH,
    )

    def call(level: float, seed: int = 0) -> Call:
        mask = torch.tensor([[1] * TEXT, [1] * (TEXT - 2) + [0] * 2])
        kwargs: dict[str, Any] = {
            "encoder_hidden_states": _text(),
            "encoder_attention_mask": mask,
            "timestep": _whole_steps(level),
            "added_cond_kwargs": {"resolution": None, "aspect_ratio": None},
            "return_dict": False,
        }
        return (noise(seed, BATCH, 4, 8, 8),), kwargs

    return Tiny("pixart", model, tuple(model.transformer_blocks), SINGLE_STREAM, call)


def _sd3() -> Tiny:
    model = SD3Transformer2DModel(
        **HEADS,
        in_channels=4,
        out_channels=4,
        num_layers=4,
        sample_size=8,
        patch_size=2,
        pos_embed_max_size=8,
        joint_attention_dim=WIDTH,
        caption_projection_dim=WIDTH,
        pooled_projection_dim=WIDTH,
    )

    def call(level: float, seed: int = 0) -> Call:
        kwargs = {
            "hidden_states": noise(seed, BATCH, 4, 8, 8),
            "encoder_hidden_states": _text(),
            "pooled_projections": noise(1_001, BATCH, WIDTH),
            "timestep": torch.full((BATCH,), 1000 * level),
            "return_dict": False,
        }
        return (), kwargs

    return Tiny("sd3", model, tuple(model.transformer_blocks), TEXT_IMAGE, call)


def _flux() -> Tiny:
    model = FluxTransformer2DModel(
        **HEADS,
        in_channels=16,
        num_layers=2,
        num_single_layers=3,
        joint_attention_dim=WIDTH,
        pooled_projection_dim=WIDTH,
        guidance_embeds=True,
        axes_dims_rope=(4, 6, 6),
    )
    blocks = (*model.transformer_blocks, *model.single_transformer_blocks)

    def call(level: float, seed: int = 0) -> Call:
        rows, columns = torch.meshgrid(torch.arange(4.0), torch.arange(4.0), indexing="ij")
        places = torch.stack([torch.zeros(16), rows.flatten(), columns.flatten()], dim=1)
        kwargs = {
            "hidden_states": noise(seed, BATCH, 16, 16),
            "encoder_hidden_states": _text(),
            "pooled_projections": noise(1_001, BATCH, WIDTH),
            "timestep": torch.full((BATCH,), level),
            "img_ids": places,
            "txt_ids": torch.zeros(TEXT, 3),
            "guidance": torch.full((BATCH,), 3.5),
            "return_dict": False,
        }
        return (), kwargs

    return Tiny("flux", model, blocks, TEXT_IMAGE, call)


def _wan() -> Tiny:
    model = WanTransformer3DModel(
        **HEADS,
        in_channels=4,
        out_channels=4,
        text_dim=WIDTH,
        freq_dim=WIDTH,
        ffn_dim=2 * WIDTH,
        num_layers=4,
        rope_max_seq_len=32,
    )

    def call(level: float, seed: int = 0) -> Call:
        kwargs = {
            "hidden_states": noise(seed, BATCH, 4, 2, 8, 8),  # channels, frames, height, width
            "timestep": torch.full((BATCH,), 1000 * level),
            "encoder_hidden_states": _text(),
            "return_dict": False,
        }
        return (), kwargs

    return Tiny("wan", model, tuple(model.blocks), SINGLE_STREAM, call)


def _cogvideox() -> Tiny:
    model = CogVideoXTransformer3DModel(
        **HEADS,
        in_channels=4,
        out_channels=4,
        time_embed_dim=WIDTH,
        text_embed_dim=WIDTH,
        num_layers=4,
        sample_width=8,
        sample_height=8,
        sample_frames=5,  # two frames of latents
        max_text_seq_length=TEXT,
    )

    def call(level: float, seed: int = 0) -> Call:
        kwargs = {
            "hidden_states": noise(seed, BATCH, 2, 4, 8, 8),  # frames, channels, height, width
            "encoder_hidden_states": _text(),
            "timestep": _whole_steps(level),
            "return_dict": False,
        }
        return (), kwargs

    return Tiny("cogvideox", model, tuple(model.transformer_blocks), IMAGE_TEXT, call)


_FACTORIES: dict[str, Callable[[], Tiny]] = {
    "dit": _dit,
    "pixart": _pixart,
    "sd3": _sd3,
    "flux": _flux,
    "wan": _wan,
    "cogvideox": _cogvideox,
}
TINY_NAMES = tuple(_FACTORIES)


def make_tiny(name: str, seed: int = 0) -> Tiny:
    """The named model, seeded, in eval mode; every parameter is random, none is zero."""
    tiny = _FACTORIES[name]()
    randomise(tiny.model, seed)
    return tiny
