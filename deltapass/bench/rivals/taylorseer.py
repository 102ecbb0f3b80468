"""TaylorSeer of diffusers: outputs of attention extrapolated from those of full steps."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final

import torch
from torch import nn

from deltapass.bench.rivals.asked import Asked
from deltapass.bench.rivals.hooks import configured, hooked
from deltapass.libraries import needs

# Its own default knows attention by the name "attn" alone, and would find nothing in a DiT.
ATTENTION: Final = r"^(.*blocks|layers)\.\d+\.attn\d?$"


@contextmanager
def enable(model: nn.Module, asked: Asked) -> Iterator[Callable[[], None]]:
    """Settings: `cache_interval`, `disable_cache_before_step`, `max_order` and the others."""
    with needs("diffusers", "bench"):
        from diffusers import TaylorSeerCacheConfig

    lite = bool(asked.settings.get("use_lite_mode"))
    config = configured(
        TaylorSeerCacheConfig,
        asked.settings,
        cache_interval=2,
        taylor_factors_dtype=torch.float32,
        cache_identifiers=None if lite else [ATTENTION],
    )
    with hooked(model, config) as reset:
        yield reset
