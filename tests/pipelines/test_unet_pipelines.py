"""Pipelines with a `unet`: attached or enabled, they cache what lies between its skips."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from models import noise, randomise
from nested_oracle import NestedOracle, joins_of
from torch import Tensor

import deltapass
from deltapass.schedule.rules import Span

diffusers = pytest.importorskip("diffusers")

STEPS, BLOCKS = 6, 4
CALL: dict[str, Any] = {
    "prompt_embeds": noise(1, 1, 5, 8),
    "negative_prompt_embeds": noise(2, 1, 5, 8),
    "latents": noise(3, 1, 4, 8, 8),
    "num_inference_steps": STEPS,
    "guidance_scale": 3.0,
    "output_type": "latent",
}


def pipeline() -> Any:
    unet = diffusers.UNet2DConditionModel(
        block_out_channels=(8, 16),
        layers_per_block=1,
        norm_num_groups=2,
        attention_head_dim=4,
        sample_size=8,
        cross_attention_dim=8,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
    )
    pipe = diffusers.StableDiffusionPipeline(
        vae=None,
        text_encoder=None,
        tokenizer=None,
        unet=randomise(unet),
        scheduler=diffusers.DDIMScheduler(clip_sample=False, steps_offset=1),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def image(pipe: Any) -> Tensor:
    found: Tensor = pipe(**CALL).images
    return found


def test_attached_pipeline_follows_its_scheduler() -> None:
    pipe = pipeline()
    plain = pipe.unet
    table = (None, Span(0, BLOCKS)) * (STEPS // 2)
    with NestedOracle(plain, joins_of(plain)).following(table):
        expected = image(pipe)
    options = {"lowering": "eager", "schedule": "delta-cache-deep", "cached_blocks": BLOCKS}
    pipe.unet = torch.compile(plain, backend="deltadit", options=options)
    with deltapass.attach(pipe) as attached:
        found = image(pipe)
    assert attached.last is not None
    assert tuple(entry.realised for entry in attached.last.entries) == table
    assert torch.equal(found, expected)


def test_enabled_pipeline_caches_and_is_given_back(capsys: pytest.CaptureFixture[str]) -> None:
    pipe = pipeline()
    plain, before = pipe.unet, image(pipe)
    with deltapass.enable(pipe, "balanced", quick=True):
        cached = image(pipe)
        with deltapass.paused(pipe):
            assert torch.equal(image(pipe), before)
    assert "cached" in capsys.readouterr().err
    assert pipe.unet is plain
    assert not torch.equal(cached, before)
    assert torch.equal(image(pipe), before)
