"""Image pipelines of the zoo with noise-prediction samplers, Sana and Lumina-Image 2."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from diffusers import (
    DDIMScheduler,
    DEISMultistepScheduler,
    DiTPipeline,
    DiTTransformer2DModel,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    LCMScheduler,
    Lumina2Pipeline,
    Lumina2Transformer2DModel,
    PixArtAlphaPipeline,
    PixArtSigmaPipeline,
    SanaPipeline,
    SanaTransformer2DModel,
)
from models import randomise
from reference import SINGLE_STREAM
from tiny import HEADS, make_tiny
from zoo_base import WIDTH, Request, Zoo, tiny_vae

NO_TEXT: dict[str, None] = {"tokenizer": None, "text_encoder": None}


def dit(name: str) -> Zoo:
    """Like the published DiT it also predicts variances, which the pipeline throws away."""
    model = DiTTransformer2DModel(
        **HEADS,
        in_channels=4,
        out_channels=8,
        num_layers=4,
        sample_size=8,
        patch_size=2,
        num_embeds_ada_norm=1000,
    )
    randomise(model)
    labels = {index: f"class {index}" for index in range(1000)}
    pipe = DiTPipeline(model, tiny_vae(), DDIMScheduler(clip_sample=False), id2label=labels)

    def arguments(request: Request) -> dict[str, Any]:
        return {
            "class_labels": [7 + 100 * request.prompt + index for index in range(request.batch)],
            "guidance_scale": request.guidance,
            "generator": torch.Generator().manual_seed(request.seed),
            "num_inference_steps": request.steps,
            "output_type": "pt",
        }

    fixed = ("size", "strength")
    blocks = tuple(model.transformer_blocks)
    return Zoo(name, pipe, model, blocks, SINGLE_STREAM, arguments, fixed=fixed)


def masked_text(request: Request) -> dict[str, Any]:
    """The text of pipelines that take masks."""
    return {
        "negative_prompt": None,  # some have a default, and refuse it together with embeddings
        "prompt_embeds": request.text(),
        "prompt_attention_mask": request.mask(),
        "negative_prompt_embeds": request.negative(),
        "negative_prompt_attention_mask": request.mask(negative=True),
        "guidance_scale": request.guidance,
    }


def _pixart(
    scheduler: Callable[[], Any], pipeline: Any = PixArtAlphaPipeline, **defaults: Any
) -> Callable[[str], Zoo]:
    def factory(name: str) -> Zoo:
        tiny = make_tiny("pixart")
        parts = {**NO_TEXT, "vae": tiny_vae(), "scheduler": scheduler()}
        pipe = pipeline(transformer=tiny.model, **parts)

        def arguments(request: Request) -> dict[str, Any]:
            kwargs = {**request.common(), **masked_text(request)}
            return {**kwargs, "use_resolution_binning": False}

        request = Request(**defaults)
        return Zoo(name, pipe, tiny.model, tiny.blocks, tiny.streams, arguments, request)

    return factory


def sana(name: str) -> Zoo:
    model = SanaTransformer2DModel(
        in_channels=4,
        out_channels=4,
        num_attention_heads=2,
        attention_head_dim=16,
        num_layers=4,
        num_cross_attention_heads=2,
        cross_attention_head_dim=16,
        cross_attention_dim=WIDTH,
        caption_channels=WIDTH,
        sample_size=8,
    )
    randomise(model)
    scheduler = DPMSolverMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0
    )
    pipe = SanaPipeline(**NO_TEXT, vae=None, transformer=model, scheduler=scheduler)

    def arguments(request: Request) -> dict[str, Any]:
        kwargs = {**request.common(scale=32), **masked_text(request)}
        return {**kwargs, "use_resolution_binning": False}

    return Zoo(name, pipe, model, tuple(model.transformer_blocks), SINGLE_STREAM, arguments)


def lumina2(name: str) -> Zoo:
    model = Lumina2Transformer2DModel(
        sample_size=8,
        in_channels=4,
        hidden_size=WIDTH,
        num_layers=4,
        num_refiner_layers=1,
        num_attention_heads=2,
        num_kv_heads=1,
        multiple_of=8,
        axes_dim_rope=(4, 6, 6),
        axes_lens=(16, 16, 16),
        cap_feat_dim=WIDTH,
    )
    randomise(model)
    scheduler = FlowMatchEulerDiscreteScheduler(shift=6.0)
    pipe = Lumina2Pipeline(model, scheduler, vae=None, **NO_TEXT)

    def arguments(request: Request) -> dict[str, Any]:
        return {**request.common(scale=8), **masked_text(request)}

    blocks = tuple(model.layers)  # the refiners before them are no part of the stack
    return Zoo(name, pipe, model, blocks, SINGLE_STREAM, arguments, separate=True)


FACTORIES: dict[str, Callable[[str], Zoo]] = {
    "dit": dit,
    "pixart-dpm": _pixart(DPMSolverMultistepScheduler),
    "pixart-euler": _pixart(EulerDiscreteScheduler),
    "pixart-deis": _pixart(DEISMultistepScheduler),
    "pixart-lcm": _pixart(LCMScheduler, steps=4, guidance=1.0),
    "pixart-sigma": _pixart(DPMSolverMultistepScheduler, PixArtSigmaPipeline),
    "sana": sana,
    "lumina2": lumina2,
}
