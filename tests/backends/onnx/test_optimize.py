"""Optimizing an ONNX model changes no value, and leaves nothing that the CPU provider lacks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")

from deltapass.backends.onnx.format import OPEN_OPTIONS, in_memory, to_onnx
from deltapass.backends.onnx.session import open_session


class Call(torch.nn.Module):
    """A function as a module."""

    def __init__(self, function: Callable[..., Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, *tensors: Tensor) -> Tensor:
        return self.function(*tensors)


def converted(function: Callable[..., Tensor], *tensors: Tensor) -> Any:
    program = torch.export.export(Call(function), tensors, strict=False)
    names = tuple(f"x{at}" for at in range(len(tensors)))
    return to_onnx("segment", program, (names, ("result",)))


def operators(model: Any) -> list[str]:
    return [node.op_type for node in model.graph.all_nodes()]


def run(model: Any, *tensors: Tensor, optimize: bool = True) -> Tensor:
    session = open_session(in_memory(model), {**OPEN_OPTIONS, "optimize": optimize})
    feed = {f"x{at}": tensor.numpy() for at, tensor in enumerate(tensors)}
    return torch.from_numpy(session.run(None, feed)[0])


NEARLY_NOTHING: dict[str, Callable[[Tensor], Tensor]] = {
    "add": lambda x: x + 1e-15,
    "subtract": lambda x: x - 1e-9,
    "multiply": lambda x: x * 1.000004,
    "divide": lambda x: x / 0.999996,
}


@pytest.mark.parametrize("optimize", [True, False])
@pytest.mark.parametrize("name", NEARLY_NOTHING)
def test_a_constant_that_does_nearly_nothing_is_kept(name: str, optimize: bool) -> None:
    function, x = NEARLY_NOTHING[name], torch.tensor([0.0, 1e-9, 1.0, 3.0])
    got = run(converted(function, x), x, optimize=optimize)
    assert torch.equal(got, function(x)) and not torch.equal(got, x)


def test_a_guard_against_a_division_by_zero_is_kept() -> None:
    zero = torch.zeros(3)
    assert run(converted(lambda x: x / (x + 1e-15), zero), zero).tolist() == [0.0] * 3


def test_constants_are_folded_and_equal_ones_kept_once() -> None:
    x = torch.arange(6.0).reshape(2, 3)
    model = converted(lambda x: (x.reshape(3, -1) * (torch.ones(2) + 1)).reshape(-1, 2) - 1, x)
    assert set(operators(model)) <= {"Reshape", "Mul", "Sub"}
    assert torch.equal(run(model, x), (x.reshape(3, 2) * 2) - 1)
    values = [tuple(v.const_value.numpy().ravel()) for v in model.graph.initializers.values()]
    assert len(values) == len(set(values))


CHOICES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "where": lambda x, y: torch.where(x > 0, y, ~y),
    "fill": lambda x, y: y.masked_fill(x > 0, True),
    "clear": lambda x, y: y.masked_fill(x > 0, False),
    "broadcast": lambda x, y: torch.where(x[:1] > 0, y, torch.tensor(True)),
}


@pytest.mark.parametrize("name", CHOICES)
def test_choices_between_booleans_run_on_the_cpu(name: str) -> None:
    x, y = torch.tensor([1.0, -1.0, 2.0, -2.0]), torch.tensor([True, True, False, False])
    model = converted(CHOICES[name], x, y)
    assert "Where" not in operators(model)
    assert torch.equal(run(model, x, y), CHOICES[name](x, y))


def test_nothing_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    x = torch.arange(8.0)
    converted(lambda x: torch.cat([x, torch.stack(torch.arange(8.0).split(4)).sum(0)]), x)
    assert not caplog.records
