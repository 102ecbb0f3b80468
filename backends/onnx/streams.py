"""ONNX Runtime on CUDA in step with the caller's stream, without the host waiting for the device.

By itself a session computes on a stream of its own, before which and after which the host has to
wait for all of the device. Given a stream of torch's, the two streams wait for each other. The
caller's own cannot be given: it is named when a session is made, and the usual one, 0, is not
taken. Source: "user_compute_stream" and "disable_synchronize_execution_providers" in
onnxruntime.ai/docs/execution-providers/CUDA-ExecutionProvider.html and
onnxruntime_run_options_config_keys.h.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Final, final

import torch

PROVIDER: Final = "CUDAExecutionProvider"
OF_USER: Final = "user_compute_stream"
NOT_WAITING: Final = ("disable_synchronize_execution_providers", "1")


@final
class ComputeStream:
    """A stream that sessions compute on; one run at a time is handed to it."""

    def __init__(self, stream: Any, device: torch.device) -> None:
        self._stream, self._device = stream, device
        self._lock = threading.Lock()

    @contextmanager
    def in_step(self) -> Iterator[None]:
        """Inside, work goes to this stream after all of the caller's, which waits for it."""
        with self._lock:
            current = torch.cuda.current_stream(self._device)
            self._stream.wait_stream(current)
            try:
                yield
            finally:
                current.wait_stream(self._stream)


def on_stream(
    options: Mapping[str, Any], device: torch.device
) -> tuple[Mapping[str, Any], ComputeStream | None]:
    """The options of a session, on a stream of torch's where its first provider takes one.

    A stream that the user names stays.

    Returns:
        The options, and the stream; None where the session computes as it will.
    """
    given = options["providers"]
    first, *others = [given] if isinstance(given, str) else list(given)
    name, settings = first if isinstance(first, tuple) else (first, {})
    if name != PROVIDER or device.type != "cuda" or not torch.cuda.is_available():
        return options, None
    new: Any = torch.cuda.Stream
    known: Any = torch.cuda.ExternalStream
    named = settings.get(OF_USER)
    stream = new(device) if named is None else known(int(named), device=device)
    chosen = (name, {**settings, OF_USER: str(stream.cuda_stream)})
    return {**options, "providers": (chosen, *others)}, ComputeStream(stream, device)
