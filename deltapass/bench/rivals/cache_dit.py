"""cache-dit: a fixed mask of steps, DBCache that decides by the first blocks, and TaylorSeer on it.

It is used on a transformer without its pipeline, where its documentation asks for the number of
steps and a fresh context for every trajectory. For a class that it knows within a pipeline alone,
settings take `forward_pattern` ("Pattern_1") and `blocks` (the name of their list) besides.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch import nn

from deltapass.bench.rivals.asked import Asked
from deltapass.bench.rivals.hooks import configured
from deltapass.libraries import optional_module


def library() -> Any:
    """cache-dit, which logs errors alone."""
    os.environ.setdefault("CACHE_DIT_LOG_LEVEL", "error")
    return optional_module("cache_dit", "bench")


@contextmanager
def static(model: nn.Module, asked: Asked) -> Iterator[Callable[[], None]]:
    """Every `interval`-th step in full (2), or those of `steps_computation_mask`.

    It is Delta-Cache of all blocks from `Fn_compute_blocks` (1) on, or up to `Bn_compute_blocks`.
    """
    settings = dict(asked.settings)
    interval = settings.pop("interval", 2)
    mask = [int(step % interval == 0) for step in range(asked.steps)]
    defaults = {"steps_computation_mask": mask, "steps_computation_policy": "static"}
    with _enabled(model, asked, {**defaults, **settings}) as reset:
        yield reset


@contextmanager
def dynamic(model: nn.Module, asked: Asked) -> Iterator[Callable[[], None]]:
    """Settings: `residual_diff_threshold`, `max_warmup_steps` and the others of DBCacheConfig."""
    with _enabled(model, asked, asked.settings) as reset:
        yield reset


@contextmanager
def taylorseer(model: nn.Module, asked: Asked) -> Iterator[Callable[[], None]]:
    """As `dynamic`, with residuals extrapolated; `taylorseer_order` (1) besides."""
    settings = dict(asked.settings)
    order = settings.pop("taylorseer_order", 1)
    calibrator = library().TaylorSeerCalibratorConfig(taylorseer_order=order)
    with _enabled(model, asked, settings, calibrator_config=calibrator) as reset:
        yield reset


@contextmanager
def _enabled(
    model: nn.Module, asked: Asked, settings: Mapping[str, Any], **more: Any
) -> Iterator[Callable[[], None]]:
    cache_dit, chosen = library(), dict(settings)
    target = _target(model, cache_dit, chosen)
    config = configured(
        cache_dit.DBCacheConfig,
        chosen,
        Fn_compute_blocks=1,
        num_inference_steps=asked.steps,
        enable_separate_cfg=False,
    )
    if asked.compiled:
        cache_dit.set_compile_configs()
    cache_dit.enable_cache(target, cache_config=config, **more)
    try:
        yield lambda: cache_dit.refresh_context(model, cache_config=config)
    finally:
        cache_dit.disable_cache(model)


def _target(model: nn.Module, cache_dit: Any, settings: dict[str, Any]) -> Any:
    """The model; or the adapter that it asks for where it does not know a class by itself."""
    pattern = settings.pop("forward_pattern", None)
    blocks = settings.pop("blocks", "transformer_blocks")
    if pattern is None:
        return model
    return cache_dit.BlockAdapter(
        transformer=model,
        blocks=getattr(model, blocks),
        forward_pattern=cache_dit.ForwardPattern[pattern],
    )
