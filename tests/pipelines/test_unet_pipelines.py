"""Pipelines with a `unet`: attached or enabled, they cache what lies between its skips."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from cross_attention_oracle import CrossAttentionOracle, attentions_of
from models import noise, randomise
from nested_oracle import NestedOracle, joins_of
from torch import Tensor

import deltapass
from deltapass.schedule.rules import Span

diffusers = pytest.importorskip("diffusers")

STEPS, BLOCKS, GATE = 6, 4, 3
KEPT = Span(0, BLOCKS, "cross-attention")
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


def test_cross_attention_goes_on_without_guidance_where_a_callback_of_diffusers_ends_it() -> None:
    def callback() -> Any:
        return diffusers.callbacks.SDCFGCutoffCallback(
            cutoff_step_ratio=None, cutoff_step_index=GATE - 1
        )

    pipe, table = pipeline(), (None,) * GATE + (KEPT,) * (STEPS - GATE)
    plain = pipe.unet
    oracle = CrossAttentionOracle(plain, attentions_of([plain]))
    with oracle.following([row and Span(0, 1) for row in table]):
        expected = pipe(**CALL, callback_on_step_end=callback()).images
    pipe.unet = torch.compile(plain, backend="deltadit", options={"lowering": "eager"})
    for _ in range(2):
        with deltapass.attach(pipe, schedule=deltapass.tgate(GATE, halves=True)) as attached:
            found = pipe(**CALL, callback_on_step_end=callback()).images
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
