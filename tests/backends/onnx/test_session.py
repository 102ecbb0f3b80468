"""Sessions of ONNX Runtime beside each other."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

from deltapass.backends.onnx.format import OPEN_OPTIONS
from deltapass.backends.onnx.session import OrtSegment, open_session
from onnx import TensorProto, helper, numpy_helper

from deltapass.bundles.manifest import ValueSpec
from deltapass.errors import BundleError

SIZE = 512


def product() -> bytes:
    """A product large enough to be shared out among threads."""
    shape = [SIZE, SIZE]
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        "product",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, shape)],
        [numpy_helper.from_array(np.ones(shape, np.float32), "w")],
    )
    opset = helper.make_opsetid("", 18)
    return bytes(helper.make_model(graph, opset_imports=[opset], ir_version=10).SerializeToString())


def seconds_of_work_after_a_run(**options: Any) -> float:
    """CPU time that the process takes while it sleeps, just after a run."""
    session = open_session(product(), {**OPEN_OPTIONS, "threads": 2, **options})
    x = np.ones((SIZE, SIZE), np.float32)
    taken = []
    for _ in range(5):
        session.run(None, {"x": x})
        started = time.process_time()
        time.sleep(0.05)
        taken.append(time.process_time() - started)
    return min(taken)


def test_a_tensor_elsewhere_is_refused() -> None:
    spec = ValueSpec(dtype="float32", shape=(SIZE, SIZE))
    segment = OrtSegment(
        open_session(product(), OPEN_OPTIONS),
        inputs=["x"],
        outputs=[("y", spec)],
        shapes=[spec.shape],
        device=torch.device("cpu"),
    )
    x = torch.ones(SIZE, SIZE)
    assert float(segment(x)[0][0, 0]) == SIZE
    with pytest.raises(BundleError, match="x lies on meta, the ONNX Runtime session on cpu"):
        segment(x.to("meta"))


@pytest.mark.parametrize(("optimize", "level"), [(True, "ENABLE_ALL"), (False, "DISABLE_ALL")])
def test_optimize_reaches_the_session(optimize: bool, level: str) -> None:
    session = open_session(product(), {**OPEN_OPTIONS, "optimize": optimize})
    found = session.get_session_options().graph_optimization_level
    assert found.name == f"ORT_{level}"


def test_threads_of_a_session_leave_the_cores_to_the_next_one() -> None:
    # 0.977x on a DiT of width 384 with two threads, where 1.56x was to be had.
    spinning = seconds_of_work_after_a_run(session_options={"session.force_spinning_stop": "0"})
    assert seconds_of_work_after_a_run() < 0.2 * spinning
