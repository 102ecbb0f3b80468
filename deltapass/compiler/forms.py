"""Which tensors can be inputs of a graph that is taken apart.

Those that are one block of numbers, and weights that hold several such tensors and say which:
quantised and distributed ones. Others are read by torch through code of their own: jagged and
sparse tensors, and all other subclasses with operators of their own. Their shapes and strides do
not tell how they lie in memory, nor their versions whether they changed.
"""

from __future__ import annotations

import operator
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import fx
from torch._subclasses.fake_tensor import FakeTensor

from deltapass.compiler.inputs import is_weight, readable_name
from deltapass.errors import TensorFormError, WrappedWeightError
from deltapass.graph.wrapped import held_by, holds_tensors


def refuse_forms(gm: fx.GraphModule, arguments: Sequence[Any]) -> None:
    """Refuse inputs that can be neither data nor weights of a graph that is taken apart.

    Raises:
        TensorFormError: If there are such inputs; names the first.
    """
    for node, value in zip(gm.graph.find_nodes(op="placeholder"), arguments, strict=True):
        _refuse(readable_name(node), form_of(value, weight=is_weight(node, value)))
    for node in gm.graph.find_nodes(op="get_attr"):
        _refuse(node.name, form_of(operator.attrgetter(str(node.target))(gm)))


def refuse_wrapped(gm: fx.GraphModule, arguments: Sequence[Any], lowering: str) -> None:
    """Refuse weights that hold other tensors, for a lowering that takes plain ones alone.

    Raises:
        WrappedWeightError: If there are such weights; names the first.
    """
    for node, value in zip(gm.graph.find_nodes(op="placeholder"), arguments, strict=True):
        if holds_tensors(value):
            raise WrappedWeightError(readable_name(node), type(value).__name__, lowering)


def _refuse(name: str, form: str | None) -> None:
    if form is not None:
        raise TensorFormError(name, form)


def form_of(value: Any, *, weight: bool = False) -> str | None:
    """What a tensor is if it cannot be an input, or as a weight none; else None."""
    if not torch.is_tensor(value) or isinstance(value, FakeTensor):
        return None
    if weight and holds_tensors(value):
        return next(_forms_within(value), None)
    own = type(value).__torch_dispatch__ is not torch.Tensor.__torch_dispatch__
    forms = {
        "a nested tensor": value.is_nested,
        f"a tensor of layout {value.layout}": value.layout is not torch.strided,
        f"a tensor of {value.dtype}, with a scale of its own": value.is_quantized,
        f"a {type(value).__name__}, a tensor with operators of its own": own,
    }
    return next((form for form, found in forms.items() if found), None)


def _forms_within(value: Any) -> Iterator[str]:
    """What is wrong with the tensors that one holds."""
    if value.is_nested:  # a jagged tensor holds its offsets
        yield "a nested tensor"
    for name, part in held_by(value):
        form = form_of(part, weight=True)
        if form is not None:
            yield f"a {type(value).__name__}, whose {name} is {form}"
