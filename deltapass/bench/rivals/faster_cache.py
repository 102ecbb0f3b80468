"""FasterCache of diffusers: attention extrapolated, the unconditional half kept as frequencies."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Final

import torch
from torch import nn
from torch.utils._pytree import tree_leaves, tree_map

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
    `conditional_first` says that a pipeline has it the other way round: halves are then swapped on
    their way in and out.
    """
    with needs("diffusers", "bench"):
        from diffusers import FasterCacheConfig

    settings = dict(asked.settings)
    swapped = settings.pop("conditional_first", False)
    config = configured(
        FasterCacheConfig,
        settings,
        tensor_format="BCHW",
        attention_weight_callback=lambda _: 0.5,  # its own default, which it warns of
        current_timestep_callback=asked.now,
        _unconditional_conditional_input_kwargs_identifiers=list(HALVED),
    )
    with hooked(model, config) as reset:
        if swapped:
            model.forward = _with_halves_swapped(model.forward)
        yield reset


def _with_halves_swapped(forward: Callable[..., Any]) -> Callable[..., Any]:
    def swapping(*args: Any, **kwargs: Any) -> Any:
        batch = next(len(one) for one in tree_leaves((args, kwargs)) if torch.is_tensor(one))

        def swap(value: Any) -> Any:
            batched = torch.is_tensor(value) and value.ndim and len(value) == batch
            return value.roll(batch // 2, 0) if batched else value

        args, kwargs = tree_map(swap, (args, kwargs))
        return tree_map(swap, forward(*args, **kwargs))

    return swapping
