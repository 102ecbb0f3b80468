"""ONNX Runtime on CUDA waits on streams, not on the host; played with streams that take notes."""

from __future__ import annotations

from typing import Any

import pytest
import torch

pytest.importorskip("onnxruntime")

from deltapass.backends.onnx import session as sessions
from deltapass.backends.onnx import streams
from deltapass.backends.onnx.format import OPEN_OPTIONS
from deltapass.backends.onnx.session import OrtSegment
from deltapass.backends.onnx.streams import ComputeStream, on_stream

from deltapass.bundles.manifest import ValueSpec
from deltapass.errors import BundleError

CUDA = torch.device("cuda", 0)
CPU = torch.device("cpu")


class Stream:
    """Notes for whom it was made to wait."""

    def __init__(self, name: str, log: list[str], handle: int = 7) -> None:
        self.name, self.log, self.cuda_stream = name, log, handle

    def wait_stream(self, other: Stream) -> None:
        self.log.append(f"{self.name} after {other.name}")


class Session:
    """Takes notes of runs, and of the binding's device-wide waits."""

    def __init__(self, log: list[str], fails: bool = False) -> None:
        self.log, self.fails = log, fails

    def io_binding(self) -> Any:
        return self

    def bind_input(self, *_: Any) -> None:
        pass

    bind_output = bind_input

    def synchronize_inputs(self) -> None:
        self.log.append("the host waits")

    synchronize_outputs = synchronize_inputs

    def run_with_iobinding(self, binding: Any, settings: Any) -> None:
        waits = True
        if settings is not None:
            waits = settings.get_run_config_entry(streams.NOT_WAITING[0]) != "1"
        self.log.append(f"run, {'waiting' if waits else 'not waiting'}")
        if self.fails:
            raise RuntimeError("no kernel")


def segment_of(session: Session) -> OrtSegment:
    spec = ValueSpec(dtype="float32", shape=(2,))
    ends: dict[str, Any] = {"inputs": ["x"], "outputs": [("y", spec)], "shapes": [(2,)]}
    return OrtSegment(session, **ends, device=CPU)


def in_step(log: list[str], monkeypatch: pytest.MonkeyPatch) -> ComputeStream:
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: Stream("caller", log))
    return ComputeStream(Stream("session", log), CPU)


def test_a_run_waits_on_streams_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    log: list[str] = []
    segment_of(Session(log)).on(in_step(log, monkeypatch))(torch.ones(2))
    assert log == ["session after caller", "run, not waiting", "caller after session"]


def test_the_caller_waits_also_for_what_failed(monkeypatch: pytest.MonkeyPatch) -> None:
    log: list[str] = []
    with pytest.raises(BundleError, match="no kernel"):
        segment_of(Session(log, fails=True)).on(in_step(log, monkeypatch))(torch.ones(2))
    assert log[-1] == "caller after session"


def test_a_session_without_a_stream_of_torchs_runs_as_ever() -> None:
    log: list[str] = []
    segment_of(Session(log)).on(None)(torch.ones(2))
    assert log == ["run, waiting"]


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "Stream", lambda device: Stream("new", [], 11))
    monkeypatch.setattr(
        torch.cuda, "ExternalStream", lambda handle, device: Stream("user's", [], handle)
    )


@pytest.mark.usefixtures("cuda")
@pytest.mark.parametrize(
    ("providers", "expected"),
    [
        ("CUDAExecutionProvider", {"user_compute_stream": "11"}),
        (["CUDAExecutionProvider", "CPUExecutionProvider"], {"user_compute_stream": "11"}),
        (
            [("CUDAExecutionProvider", {"device_id": 0})],
            {"device_id": 0, "user_compute_stream": "11"},
        ),
        (
            [("CUDAExecutionProvider", {"user_compute_stream": "42"})],
            {"user_compute_stream": "42"},
        ),
    ],
)
def test_cuda_is_given_a_stream(providers: Any, expected: dict[str, Any]) -> None:
    before = {**OPEN_OPTIONS, "providers": providers}
    options, stream = on_stream(before, CUDA)
    assert stream is not None
    (name, settings), *others = options["providers"]
    assert (name, settings) == ("CUDAExecutionProvider", expected)
    assert others == ([] if isinstance(providers, str) else providers[1:])
    assert sessions.device_of(options["providers"]) == CUDA
    assert before == {**OPEN_OPTIONS, "providers": providers}


@pytest.mark.usefixtures("cuda")
@pytest.mark.parametrize("provider", ["CPUExecutionProvider", "TensorrtExecutionProvider"])
def test_other_providers_are_left_as_they_are(provider: str) -> None:
    options = {**OPEN_OPTIONS, "providers": (provider, "CUDAExecutionProvider")}
    assert on_stream(options, sessions.device_of(options["providers"])) == (options, None)
