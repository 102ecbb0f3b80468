"""The hooks of diffusers: enabled as its documentation says, on models of any of its classes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch import nn

from deltapass.errors import BenchError
from deltapass.libraries import needs


@contextmanager
def hooked(model: nn.Module, config: Any) -> Iterator[Callable[[], None]]:
    """Enabled by `enable_cache`; gives what pipelines call between two trajectories.

    Classes of diffusers that do not offer `enable_cache` inherit it for the time, so that its
    hooks can be told the context of a call.

    Raises:
        BenchError: If the rival found nothing in this model: it would be a silent 1.00x.
    """
    with needs("diffusers", "bench"):
        from diffusers.models.cache_utils import CacheMixin

    kind = type(model)
    if not isinstance(model, CacheMixin):
        model.__class__ = type(kind.__name__, (kind, CacheMixin), {"__module__": kind.__module__})
    enabled: Any = model
    enabled.enable_cache(config)
    try:
        _check(model, config)
        yield enabled._reset_stateful_cache
    finally:
        enabled.disable_cache()
        model.__class__ = kind


def _check(model: nn.Module, config: Any) -> None:
    registries = (getattr(module, "_diffusers_hook", None) for module in model.modules())
    if not any(registry is not None and registry.hooks for registry in registries):
        raise BenchError(
            f"{type(config).__name__} finds no layer of {type(model).__name__} to cache",
            "Give names of layers that it has in the settings, or leave this rival out",
        )


def configured(kind: Callable[..., Any], settings: Mapping[str, Any], **defaults: Any) -> Any:
    """A configuration of a rival's own class.

    Raises:
        BenchError: If it refuses the settings.
    """
    try:
        return kind(**{**defaults, **settings})
    except (TypeError, ValueError) as error:
        name = getattr(kind, "__name__", str(kind))
        raise BenchError(
            f"{name} refuses the settings {dict(settings)}: {error}",
            f"Settings of this rival are the arguments of its {name}",
        ) from error
