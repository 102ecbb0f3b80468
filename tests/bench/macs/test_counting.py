"""MACs by module: what layers do, what attention does, and the same as the pass counts."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from deltapass.bench.macs import architectures, trajectories
from deltapass.bench.macs.counting import count_call
from deltapass.explanation import explain
from deltapass.graph.program import Macs
from deltapass.schedule.rules import Schedule

TOKENS, WIDTH = 5, 8


class Attending(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.into = nn.Linear(WIDTH, 3 * WIDTH)
        self.out = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = self.into(x).chunk(3, -1)
        return x + self.out(
            F.scaled_dot_product_attention(q[:, None], k[:, None], v[:, None])[:, 0]
        )


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Attending() for _ in range(3))
        self.head = nn.Conv1d(WIDTH, 2, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for block in self.blocks:
            x = block(x)
        x = self.blocks[0].out(x)  # borrowed: not the work of the block
        return self.head(x[:, 1:].transpose(1, 2))


@pytest.mark.parametrize("device", ["meta", "cpu"])
def test_layers_and_attention_are_told_apart_and_by_their_place(device: str) -> None:
    with torch.device(device):
        model, x = Model(), torch.empty(2, TOKENS, WIDTH)
    found = count_call(model, {"x": x})
    linear = 2 * TOKENS * WIDTH * 4 * WIDTH
    products = 2 * 2 * TOKENS * TOKENS * WIDTH
    head = 2 * (TOKENS - 1) * 3 * WIDTH * 2
    assert found.blocks("blocks") == (Macs(linear, linear + products),) * 3
    assert found.within(["head"]) == Macs(head, head)
    assert found.total == Macs(3.25 * linear + head, 3.25 * linear + 3 * products + head)
    assert found.within(["blocks.*.out"]) == Macs(3 * linear / 4, 3 * linear / 4)
    assert found.by_path[""] == Macs(linear / 4, linear / 4)
    assert not model.head._forward_hooks


def test_a_linear_layer_of_a_slice_is_a_layer() -> None:
    with torch.device("meta"):
        layer, x = nn.Linear(WIDTH, 4, bias=False), torch.empty(2, TOKENS, WIDTH)
    found = count_call(nn.Sequential(layer), {"input": x[:, 1:]}).total
    assert found == Macs(*[2.0 * (TOKENS - 1) * WIDTH * 4] * 2)


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    pytest.importorskip("diffusers")
    config = {"num_attention_heads": 2, "attention_head_dim": 16, "in_channels": 4,
              "num_layers": 4, "sample_size": 8, "num_embeds_ada_norm": 10}  # fmt: skip
    entry = {
        "title": "tiny",
        "class": "DiTTransformer2DModel",
        "blocks": "transformer_blocks",
        "config": config,
        "inputs": {"hidden_states": ["B", 4, 8, 8], "timestep": ["B"], "class_labels": ["B"]},
    }
    file = {"architectures": {"tiny": entry}}
    for cached in (architectures.architecture, architectures.counted):
        cached.cache_clear()
    monkeypatch.setattr(architectures, "counts_file", lambda: file)
    yield file
    for cached in (architectures.architecture, architectures.counted):
        cached.cache_clear()


def test_trajectories_are_those_that_the_pass_reports(tiny: dict[str, Any]) -> None:
    rule = {"cached_blocks": 3, "outline": "deep", "detail": "shallow", "boundary": 3}
    made = architectures.architecture("tiny")
    inputs = architectures._inputs(made.inputs, 2)
    report = explain(made.build(), options={"schedule": Schedule(**rule), "steps": 6}, **inputs)
    assert report.refusal is None
    assert trajectories.plain("tiny", 2, 6) == report.plain_macs
    assert trajectories.cached("tiny", 2, 6, Schedule(**rule)) == report.trajectory_macs
