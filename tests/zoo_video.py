"""Video pipelines of the zoo: five frames, which are two of latents."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from diffusers import (
    CogVideoXDDIMScheduler,
    CogVideoXPipeline,
    FlowMatchEulerDiscreteScheduler,
    HunyuanVideoPipeline,
    HunyuanVideoTransformer3DModel,
    UniPCMultistepScheduler,
    WanPipeline,
)
from models import randomise
from reference import IMAGE_TEXT
from tiny import HEADS, make_tiny
from zoo_base import WIDTH, Request, Zoo

NO_TEXT: dict[str, None] = {"tokenizer": None, "text_encoder": None}
SCALE = 8  # pixels to a latent, where a pipeline has no VAE to ask


def video(request: Request) -> dict[str, Any]:
    return {
        **request.common(SCALE),
        "num_frames": 5,
        "prompt_embeds": request.text(),
        "guidance_scale": request.guidance,
    }


def guided(request: Request) -> dict[str, Any]:
    return {**video(request), "negative_prompt_embeds": request.negative()}


def wan(name: str) -> Zoo:
    tiny = make_tiny("wan")
    scheduler = UniPCMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0
    )
    pipe = WanPipeline(**NO_TEXT, vae=None, scheduler=scheduler, transformer=tiny.model)
    return Zoo(name, pipe, tiny.model, tiny.blocks, tiny.streams, guided, separate=True)


def cogvideox(name: str) -> Zoo:
    tiny = make_tiny("cogvideox")
    scheduler = CogVideoXDDIMScheduler(
        prediction_type="v_prediction", timestep_spacing="trailing", rescale_betas_zero_snr=True
    )
    pipe = CogVideoXPipeline(**NO_TEXT, vae=None, transformer=tiny.model, scheduler=scheduler)
    return Zoo(name, pipe, tiny.model, tiny.blocks, tiny.streams, guided)


def hunyuanvideo(name: str) -> Zoo:
    """Guidance is an input of the model. Two double blocks and two single blocks."""
    model = HunyuanVideoTransformer3DModel(
        **HEADS,
        in_channels=4,
        out_channels=4,
        num_layers=2,
        num_single_layers=2,
        num_refiner_layers=1,
        text_embed_dim=WIDTH,
        pooled_projection_dim=WIDTH,
        rope_axes_dim=(4, 6, 6),
    )
    randomise(model)
    pipe = HunyuanVideoPipeline(
        **NO_TEXT,
        text_encoder_2=None,
        tokenizer_2=None,
        transformer=model,
        vae=None,
        scheduler=FlowMatchEulerDiscreteScheduler(shift=7.0),
    )

    def arguments(request: Request) -> dict[str, Any]:
        texts = {"pooled_prompt_embeds": request.pooled(), "prompt_attention_mask": request.mask()}
        return {**video(request), **texts}

    blocks = (*model.transformer_blocks, *model.single_transformer_blocks)
    return Zoo(name, pipe, model, blocks, IMAGE_TEXT, arguments)


FACTORIES: dict[str, Callable[[str], Zoo]] = {
    "wan": wan,
    "cogvideox": cogvideox,
    "hunyuanvideo": hunyuanvideo,
}
