"""FasterCache of diffusers: attention extrapolated, the unconditional half kept as frequencies."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final

from torch import nn

from deltapass.bench.rivals.asked import Asked
from deltapass.bench.rivals.hooks import configured, hooked
from deltapass.libraries import needs

# What is halved with the batch; diffusers' own default lacks the last two.
HALVED: Final = (
    "hidden_states",
    "encoder_hidden_states",
    "timestep",
    "attention_mask",
    "encoder_attention_mask",
    "class_labels",
    "pooled_projections",
)


@contextmanager
def enable(model: nn.Module, asked: Asked) -> Iterator[Callable[[], None]]:
    """Settings: of its configuration; `is_guidance_distilled` where a call has one half only.

    It takes the first half of a batch for the unconditional one, as diffusers' pipelines have it.
    """
    with needs("diffusers", "bench"):
        from diffusers import FasterCacheConfig

    config = configured(
        FasterCacheConfig,
        asked.settings,
        tensor_format="BCHW",
        attention_weight_callback=lambda _: 0.5,  # its own default, which it warns of
        current_timestep_callback=asked.now,
        _unconditional_conditional_input_kwargs_identifiers=list(HALVED),
    )
    with hooked(model, config) as reset:
        yield reset
