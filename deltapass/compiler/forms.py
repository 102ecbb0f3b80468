"""Which tensors can be inputs of a graph that is taken apart: those that are one block of numbers.

Others are read by torch through code of their own: jagged and sparse tensors, and subclasses that
hold several tensors, such as quantised or distributed weights. Their shapes and strides do not
tell how they lie in memory, nor their versions whether they changed.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import fx
from torch._subclasses.fake_tensor import FakeTensor

from deltapass.compiler.inputs import readable_name
from deltapass.errors import TensorFormError


def refuse_forms(gm: fx.GraphModule, arguments: Sequence[Any]) -> None:
    """Refuse inputs that are not one block of numbers.

    Raises:
        TensorFormError: If there are such inputs; names the first.
    """
    for node, value in zip(gm.graph.find_nodes(op="placeholder"), arguments, strict=True):
        form = form_of(value)
        if form is not None:
            raise TensorFormError(readable_name(node), form)


def form_of(value: Any) -> str | None:
    """What a tensor is if not one block of numbers, else None."""
    if not torch.is_tensor(value):
        return None
    own = type(value).__torch_dispatch__ is not torch.Tensor.__torch_dispatch__
    forms = {
        "a nested tensor": value.is_nested,
        f"a tensor of layout {value.layout}": value.layout is not torch.strided,
        f"a tensor of {value.dtype}, with a scale of its own": value.is_quantized,
        f"a {type(value).__name__}, a tensor with operators of its own": own,
    }
    plain = isinstance(value, FakeTensor)
    return next((form for form, found in forms.items() if found and not plain), None)
