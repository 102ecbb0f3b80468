"""SD3 and Flux pipelines of the zoo: from text, from an image, and with a ControlNet."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

from diffusers import (
    FlowMatchEulerDiscreteScheduler,
    FluxControlNetModel,
    FluxControlNetPipeline,
    FluxImg2ImgPipeline,
    FluxPipeline,
    SD3ControlNetModel,
    StableDiffusion3ControlNetPipeline,
    StableDiffusion3Img2ImgPipeline,
    StableDiffusion3Pipeline,
)
from models import randomise
from tiny import HEADS, make_tiny
from zoo_base import WIDTH, Request, Zoo, tiny_vae

NO_TEXT: dict[str, None] = {
    f"{part}{number}": None for part in ("tokenizer", "text_encoder") for number in ("", "_2")
}
NO_THIRD_TEXT: dict[str, None] = {"tokenizer_3": None, "text_encoder_3": None}
STRENGTH = 0.6


def text(request: Request) -> dict[str, Any]:
    return {
        **request.common(),
        "prompt_embeds": request.text(),
        "pooled_prompt_embeds": request.pooled(),
        "guidance_scale": request.guidance,
    }


def negative(request: Request) -> dict[str, Any]:
    return {
        "negative_prompt_embeds": request.negative(),
        "negative_pooled_prompt_embeds": request.pooled(negative=True),
    }


# ---- SD3: guidance in one call of twice the batch ----------------------------------------------


def sd3_text(request: Request) -> dict[str, Any]:
    return {**text(request), **negative(request)}


def sd3_from_image(request: Request) -> dict[str, Any]:
    return {**sd3_text(request), "image": request.image(), "strength": request.strength}


def sd3_controlled(request: Request) -> dict[str, Any]:
    return {**sd3_text(request), "control_image": request.image()}


def _sd3(name: str, pipeline: Any, arguments: Any, parts: Any = None, **options: Any) -> Zoo:
    tiny = make_tiny("sd3")
    scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0)
    nothing = {**NO_TEXT, **NO_THIRD_TEXT}
    pipe = pipeline(
        transformer=tiny.model, scheduler=scheduler, vae=tiny_vae(), **nothing, **(parts or {})
    )
    return Zoo(name, pipe, tiny.model, tiny.blocks, tiny.streams, arguments, **options)


def sd3(name: str) -> Zoo:
    return _sd3(name, StableDiffusion3Pipeline, sd3_text)


def sd3_img2img(name: str) -> Zoo:
    defaults = Request(strength=STRENGTH)
    pipeline = StableDiffusion3Img2ImgPipeline
    return _sd3(name, pipeline, sd3_from_image, defaults=defaults, fixed=())


def sd3_controlnet(name: str) -> Zoo:
    """Two residuals for four blocks: each is added after two of them, none after the last."""
    control = SD3ControlNetModel(
        **HEADS,
        in_channels=4,
        out_channels=4,
        num_layers=2,
        sample_size=8,
        pos_embed_max_size=8,
        joint_attention_dim=WIDTH,
        caption_projection_dim=WIDTH,
        pooled_projection_dim=WIDTH,
    )
    parts = {"controlnet": randomise(control, seed=1)}
    return _sd3(name, StableDiffusion3ControlNetPipeline, sd3_controlled, parts)


# ---- Flux: guidance is an input, or a second call ----------------------------------------------


def flux_true_guidance(request: Request) -> dict[str, Any]:
    """Classifier-free guidance; the guidance that the model takes as an input stays as it is."""
    scale = {"true_cfg_scale": request.guidance, "guidance_scale": 3.5}
    return {**text(request), **negative(request), **scale}


def flux_from_image(request: Request) -> dict[str, Any]:
    return {**text(request), "image": request.image(), "strength": request.strength}


def flux_controlled(request: Request) -> dict[str, Any]:
    return {**text(request), "control_image": request.image()}


def _flux(name: str, pipeline: Any, arguments: Any, parts: Any = None, **options: Any) -> Zoo:
    tiny = make_tiny("flux")
    scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=True)
    pipe = pipeline(
        transformer=tiny.model, scheduler=scheduler, vae=tiny_vae(), **NO_TEXT, **(parts or {})
    )
    return Zoo(name, pipe, tiny.model, tiny.blocks, tiny.streams, arguments, **options)


def flux(name: str) -> Zoo:
    return _flux(name, FluxPipeline, text)


def flux_cfg(name: str) -> Zoo:
    return _flux(name, FluxPipeline, flux_true_guidance, separate=True)


def flux_img2img(name: str) -> Zoo:
    defaults = Request(strength=STRENGTH)
    return _flux(name, FluxImg2ImgPipeline, flux_from_image, defaults=defaults, fixed=())


def flux_controlnet(name: str) -> Zoo:
    """Residuals after every block, the last one too."""
    with warnings.catch_warnings():  # diffusers 0.42 builds it from a class that it deprecates
        warnings.filterwarnings("ignore", "`FluxPosEmbed` is deprecated", FutureWarning)
        control = FluxControlNetModel(
            **HEADS,
            in_channels=16,
            num_layers=1,
            num_single_layers=2,
            joint_attention_dim=WIDTH,
            pooled_projection_dim=WIDTH,
            guidance_embeds=True,
            axes_dims_rope=(4, 6, 6),
        )
    parts = {"controlnet": randomise(control, seed=1)}
    return _flux(name, FluxControlNetPipeline, flux_controlled, parts)


FACTORIES: dict[str, Callable[[str], Zoo]] = {
    "sd3": sd3,
    "sd3-img2img": sd3_img2img,
    "sd3-controlnet": sd3_controlnet,
    "flux": flux,
    "flux-cfg": flux_cfg,
    "flux-img2img": flux_img2img,
    "flux-controlnet": flux_controlnet,
}
