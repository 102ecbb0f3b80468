"""U-Nets of diffusers: trajectories equal Delta-Cache by hooks, bit for bit if eager."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from cross_attention_oracle import CrossAttentionOracle, attentions_of
from driving import compiled, in_session, tensors
from models import noise, randomise
from nested_oracle import NestedOracle, joins_of
from reference import Call
from torch import nn

from deltapass.schedule.rules import Span

diffusers = pytest.importorskip("diffusers")

TABLE_STEPS = 4
NARROW: dict[str, Any] = {
    "block_out_channels": (8, 16),
    "layers_per_block": 1,
    "norm_num_groups": 2,
    "attention_head_dim": 4,
    "in_channels": 4,
    "out_channels": 4,
    "sample_size": 8,
}
TEXT: dict[str, Any] = {
    **NARROW,
    "cross_attention_dim": 8,
    "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
}
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "unconditional": (
        "UNet2DModel",
        {
            **NARROW,
            "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
            "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
            "add_attention": False,
        },
    ),
    "text": ("UNet2DConditionModel", TEXT),
    "no middle": ("UNet2DConditionModel", {**TEXT, "mid_block_type": None}),
}


def model_of(name: str) -> nn.Module:
    kind, config = MODELS[name]
    model: nn.Module = randomise(getattr(diffusers, kind)(**config))
    return model


def calls_of(name: str, batch: int = 2, height: int = 8, width: int = 8) -> list[Call]:
    """A trajectory; guidance is the two halves of the batch, as pipelines call these models."""
    text = () if name == "unconditional" else (noise(99, batch, 5, 8),)
    return [
        ((noise(step, batch, 4, height, width), torch.tensor(900 - 200 * step), *text), {})
        for step in range(TABLE_STEPS)
    ]


@pytest.mark.parametrize("name", MODELS)
def test_trajectories_equal_the_oracle_at_every_size(name: str) -> None:
    """One compiled model: batches and resolutions in turn."""
    model = model_of(name)
    blocks = len(joins_of(model)) - (name == "no middle")
    run = compiled(model, schedule="delta-cache-deep", cached_blocks=blocks)
    table = (None, Span(0, blocks)) * (TABLE_STEPS // 2)
    for sizes in ((2, 8, 8), (1, 8, 12)):
        calls = calls_of(name, *sizes)
        outputs, report = in_session(run, calls)
        assert tuple(entry.realised for entry in report.entries) == table
        expected = NestedOracle(model, joins_of(model)).run(table, calls)
        assert all(map(torch.equal, tensors(outputs), tensors(expected)))


def test_cross_attention_outside_of_all_blocks_is_kept_too() -> None:
    model, blocks = model_of("text"), 4
    kept = Span(0, blocks, "cross-attention")
    run = compiled(model, schedule="tgate", gate=2)
    calls = calls_of("text")
    outputs, report = in_session(run, calls)
    assert tuple(entry.realised for entry in report.entries) == (None, None, kept, kept)
    oracle = CrossAttentionOracle(model, attentions_of([model]))
    expected = oracle.run((None, None, Span(0, 1), Span(0, 1)), calls)
    assert all(map(torch.equal, tensors(outputs), tensors(expected)))


def test_residuals_of_a_control_network_are_added_anew_at_every_step() -> None:
    model, blocks = model_of("text"), 4
    shapes = ((8, 8), (8, 8), (8, 4), (16, 4))
    calls = []
    for step, (args, _) in enumerate(calls_of("text")):
        made = tuple(noise(50 + step, 2, width, size, size) for width, size in shapes)
        control = {
            "down_block_additional_residuals": made,
            "mid_block_additional_residual": made[-1],
        }
        calls.append((args, control))
    run = compiled(model, schedule="delta-cache-deep", cached_blocks=blocks)
    outputs, report = in_session(run, calls)
    table = (None, Span(0, blocks)) * (TABLE_STEPS // 2)
    assert tuple(entry.realised for entry in report.entries) == table
    oracle = NestedOracle(model, joins_of(model), entering=model.conv_in)
    assert all(map(torch.equal, tensors(outputs), tensors(oracle.run(table, calls))))
