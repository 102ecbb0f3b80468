"""Compiling a module so that it can be undone, and with which backend one was compiled."""

from __future__ import annotations

import inspect
from collections.abc import Set as AbstractSet
from typing import Any, Final

import torch
from torch import nn

OURS: Final = "deltadit"
LAYERS: Final = 8  # torch wraps a backend in four
INNER: Final = ("_torchdynamo_orig_backend", "_torchdynamo_orig_callable")


def backend_of(module: nn.Module) -> str | None:
    """The backend's name; None where the module is not compiled, or torch does not tell."""
    name = getattr(_backend(module), "compiler_name", None)
    return OURS if name is not None and OURS in name else name


def options_of(module: nn.Module) -> dict[str, Any]:
    """The options it was compiled with; none where torch does not tell."""
    return dict(getattr(_backend(module), "kwargs", {}).get("options") or {})


def _backend(module: nn.Module) -> Any:
    """What torch wraps a backend in that knows its name; None where there is none."""
    layer = getattr(vars(module).get("dynamo_ctx"), "callback", None)  # of torch.compile(module)
    if layer is None:  # of module.compile()
        made: Any = getattr(module, "_compiled_call_impl", None)
        kept = inspect.getclosurevars(made).nonlocals if inspect.isfunction(made) else {}
        layer = kept.get("callback")
    for _ in range(LAYERS):
        if isinstance(getattr(layer, "compiler_name", None), str):
            return layer
        layer = next((getattr(layer, each) for each in INNER if hasattr(layer, each)), None)
    return None


def compiled_with_ours(model: nn.Module, **how: Any) -> tuple[Any, AbstractSet[str]]:
    """The model under ours, and the names of attributes that this puts on the model itself.

    Args:
        model: A model that is not compiled.
        how: Other arguments of torch.compile.
    """
    before = set(vars(model))
    made = torch.compile(model, backend=OURS, **how)
    return made, vars(model).keys() - before


def clean(model: nn.Module, left: AbstractSet[str]) -> None:
    """Take away the attributes that compiling has put on a model."""
    for name in left:
        vars(model).pop(name, None)
