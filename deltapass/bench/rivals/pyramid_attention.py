"""Pyramid Attention Broadcast of diffusers: outputs of attention are kept for some calls."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from torch import nn

from deltapass.bench.rivals.asked import Asked
from deltapass.bench.rivals.hooks import configured, hooked
from deltapass.libraries import needs


@contextmanager
def enable(model: nn.Module, asked: Asked) -> Iterator[Callable[[], None]]:
    """Settings: `spatial_attention_block_skip_range` and the others of its configuration."""
    with needs("diffusers", "bench"):
        from diffusers import PyramidAttentionBroadcastConfig

    config = configured(
        PyramidAttentionBroadcastConfig,
        asked.settings,
        spatial_attention_block_skip_range=2,
        current_timestep_callback=asked.now,
    )
    with hooked(model, config) as reset:
        yield reset
