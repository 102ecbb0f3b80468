"""Models whose weights are no plain tensors are not exported."""

from __future__ import annotations

from typing import Any, Final

import torch

from deltapass.errors import ExportError
from deltapass.graph.wrapped import holds_tensors

REMEDY: Final = "Export the model as it was before it was quantised; torch.compile runs it as it is"


def of_plain_weights(model: Any) -> Any:
    """The model, if it can be kept: a quantised weight is several tensors with code of their own.

    Raises:
        ExportError: If a weight holds other tensors; names the first.
    """
    if not isinstance(model, torch.nn.Module):
        return model  # refused by whoever traces it
    for name, weight in (*model.named_parameters(), *model.named_buffers()):
        if holds_tensors(weight):
            raise ExportError(f"weight {name!r} is of type {type(weight).__name__}", REMEDY)
    return model
