"""With which backend a module was compiled, for messages: read off what torch.compile leaves."""

from __future__ import annotations

import inspect
from typing import Any, Final

from torch import nn

OURS: Final = "deltadit"
LAYERS: Final = 8  # torch wraps a backend in four
INNER: Final = ("_torchdynamo_orig_backend", "_torchdynamo_orig_callable")


def backend_of(module: nn.Module) -> str | None:
    """The backend's name; None where the module is not compiled, or torch does not tell."""
    layer = getattr(vars(module).get("dynamo_ctx"), "callback", None)  # of torch.compile(module)
    if layer is None:  # of module.compile()
        made: Any = getattr(module, "_compiled_call_impl", None)
        kept = inspect.getclosurevars(made).nonlocals if inspect.isfunction(made) else {}
        layer = kept.get("callback")
    for _ in range(LAYERS):
        name = getattr(layer, "compiler_name", None)
        if isinstance(name, str):
            return OURS if OURS in name else name
        layer = next((getattr(layer, each) for each in INNER if hasattr(layer, each)), None)
    return None
