"""The rivals by name, and the one way to use any of them."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from types import MappingProxyType
from typing import Any, Final

import torch
from torch import nn

from deltapass.bench.measuring.compiles import kept_compile_settings
from deltapass.bench.rivals.asked import Asked, Rival
from deltapass.bench.rivals.before import as_before
from deltapass.bench.rivals.running import Clock, Running
from deltapass.errors import BenchError, did_you_mean

HERE: Final = "deltapass.bench.rivals"
RIVALS: Final[Mapping[str, str]] = MappingProxyType(
    {
        "cache-dit-static": f"{HERE}.cache_dit:static",
        "cache-dit-dynamic": f"{HERE}.cache_dit:dynamic",
        "cache-dit-taylorseer": f"{HERE}.cache_dit:taylorseer",
        "first-block-cache": f"{HERE}.first_block:enable",
        "mag-cache": f"{HERE}.mag_cache:enable",
        "pyramid-attention-broadcast": f"{HERE}.pyramid_attention:enable",
        "faster-cache": f"{HERE}.faster_cache:enable",
        "taylorseer": f"{HERE}.taylorseer:enable",
    }
)


def rival(name: str) -> Rival:
    """The function of a name.

    Raises:
        BenchError: If there is no such rival.
    """
    if name not in RIVALS:
        known = ", ".join(RIVALS)
        raise BenchError(
            f"there is no rival {name!r}",
            f"{did_you_mean(name, tuple(RIVALS))}Rivals are {known}",
        )
    module, _, function = RIVALS[name].partition(":")
    found: Rival = getattr(importlib.import_module(module), function)
    return found


@contextmanager
def enabled(
    name: str,
    target: Any,
    *,
    steps: int,
    settings: Mapping[str, Any] = MappingProxyType({}),
    sample: Callable[[nn.Module], object] | None = None,
) -> Iterator[Running]:
    """A rival at work on a model; afterwards the model is as it was.

    Args:
        name: Of the rival.
        target: A transformer of diffusers; or a pipeline with one, whose transformer is the result
            for the time.
        steps: Of every trajectory.
        settings: Arguments of the rival's own configuration, and ours of all: `compiled` (True, or
            arguments of torch.compile: then the model is compiled, after the rival is enabled) and
            `timestep_scale`, by which timesteps of the model are multiplied for the rival: 1000
            where a model is given 1 to 0 and the settings mean 1000 to 0.
        sample: Draws a trajectory with the denoiser that it is given, for rivals that must see one
            before they can be used ("mag-cache").

    Raises:
        BenchError: If there is no such rival, it refuses the settings or finds nothing to cache.
        MissingLibraryError: If it is not installed.
    """
    use = rival(name)
    own = dict(settings)
    compiled, clock = own.pop("compiled", False), Clock(own.pop("timestep_scale", 1.0))
    model = target if isinstance(target, nn.Module) else target.transformer
    asked = Asked(steps, own, bool(compiled), clock.now, sample)
    with kept_compile_settings(), as_before(model), use(model, asked) as reset:
        call: Callable[..., Any] = model
        if compiled:
            call = torch.compile(model, **(compiled if isinstance(compiled, Mapping) else {}))
        running = Running(model, call, clock, reset)
        with nullcontext() if model is target else _in_place(target, running):
            yield running


@contextmanager
def _in_place(pipeline: Any, running: Running) -> Iterator[None]:
    model = pipeline.transformer
    pipeline.transformer = running
    try:
        yield
    finally:
        pipeline.transformer = model
