"""What only a GPU can prove of ONNX Runtime: `pytest -m gpu tests/backends/onnx`."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

import onnxruntime
from deltapass.backends.onnx.streams import PROVIDER
from driving import compiled, in_session
from models import make

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(
        PROVIDER not in onnxruntime.get_available_providers(), reason="needs onnxruntime-gpu"
    ),
]


def test_runs_are_in_step_with_the_caller_and_do_not_wait() -> None:
    toy = make("adaln").cuda()
    calls = [
        (tuple(given.cuda() for given in toy.inputs(900.0 - step, step)[0]), {})
        for step in range(6)
    ]
    model = compiled(toy, lowering="onnx", cached_blocks=4)
    wanted, _ = in_session(compiled(toy, cached_blocks=4), calls)
    in_session(model, calls)
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        results, report = in_session(model, calls)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    for ours, theirs in zip(results, wanted, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-3)
    assert report.cached > 0
