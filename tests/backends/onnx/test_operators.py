"""One table of operators for several conversions changes none of them, and stays no longer."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

pytest.importorskip("onnxscript")

from deltapass.backends.onnx.format import in_memory, to_onnx
from deltapass.backends.onnx.operators import gathered_once
from torch.onnx._internal.exporter._registration import ONNXRegistry


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """The opset of every table that torch.onnx makes."""
    opsets: list[int] = []
    gather = ONNXRegistry.from_torchlib

    def noting(opset_version: int = 18) -> ONNXRegistry:
        opsets.append(opset_version)
        return gather(opset_version=opset_version)

    monkeypatch.setattr(ONNXRegistry, "from_torchlib", staticmethod(noting))
    yield opsets


def converted() -> bytes:
    layers = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.GELU(), torch.nn.LayerNorm(4))
    for weight in layers.parameters():
        torch.nn.init.constant_(weight, 0.5)
    program = torch.export.export(layers.eval(), (torch.ones(2, 4),), strict=False)
    return in_memory(to_onnx("segment", program, (("x",), ("y",))))


def test_conversions_share_a_table_and_are_the_same(made: list[int]) -> None:
    alone = converted()
    assert len(made) == 1
    with gathered_once():
        assert [converted(), converted()] == [alone, alone]
    assert len(made) == 2
    assert converted() == alone and len(made) == 3


def test_a_table_that_is_added_to_is_no_others() -> None:
    with gathered_once():
        first = ONNXRegistry.from_torchlib()
        first.register_op(torch.ops.aten.sin.default, lambda x: x, is_complex=False)
        second = ONNXRegistry.from_torchlib()
    sin = torch.ops.aten.sin.default
    assert len(first.get_decomps(sin)) == len(second.get_decomps(sin)) + 1 > 1


def test_torchs_own_is_back_after_an_error_too() -> None:
    own = vars(ONNXRegistry)["from_torchlib"]
    with pytest.raises(KeyboardInterrupt), gathered_once():
        assert vars(ONNXRegistry)["from_torchlib"] is not own
        raise KeyboardInterrupt
    assert vars(ONNXRegistry)["from_torchlib"] is own
