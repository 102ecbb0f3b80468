"""First Block Cache of diffusers: all but the first block, while its residual hardly changes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from torch import nn

from deltapass.bench.rivals.asked import Asked
from deltapass.bench.rivals.hooks import configured, hooked
from deltapass.libraries import needs


@contextmanager
def enable(model: nn.Module, asked: Asked) -> Iterator[Callable[[], None]]:
    """Settings: `threshold`, of the relative change of the first block's residual."""
    with needs("diffusers", "bench"):
        from diffusers import FirstBlockCacheConfig

    with hooked(model, configured(FirstBlockCacheConfig, asked.settings)) as reset:
        yield reset
