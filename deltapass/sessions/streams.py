"""Deltas and the streams of a device: who reads one on another stream than the last must say so.

A tensor's memory is free for the next tensor of its own stream as soon as nobody holds it. A
stream that only read it is asked nothing, unless it is recorded as one that uses it.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Final, Protocol, final

import torch

from deltapass.sessions.deltas import History


class Streams(Protocol):
    """What is asked of the streams of one kind of device."""

    def current(self, device: torch.device) -> Any:
        """The stream that this thread's work goes to now."""

    def order(self, stream: Any, after: Any) -> None:
        """Let a stream wait for all that another was given so far; the host goes on."""

    def keep(self, tensor: torch.Tensor, stream: Any) -> None:
        """Keep a tensor's memory until a stream is done with all it was given so far."""

    def to_host(self, tensor: torch.Tensor) -> torch.Tensor:
        """Start copying a tensor into memory of the host, on the current stream."""

    def point(self, stream: Any) -> Any:
        """An event at which all is done that a stream was given so far."""


@final
class CudaStreams:
    """Those of torch.cuda."""

    def current(self, device: torch.device) -> Any:
        """The stream that this thread's work goes to now."""
        return torch.cuda.current_stream(device)

    def order(self, stream: Any, after: Any) -> None:
        """Let a stream wait for all that another was given so far."""
        stream.wait_stream(after)

    def keep(self, tensor: torch.Tensor, stream: Any) -> None:
        """Keep a tensor's memory until a stream is done with all it was given so far."""
        tensor.record_stream(stream)

    def to_host(self, tensor: torch.Tensor) -> torch.Tensor:
        """Start copying a tensor into pinned memory, on the current stream."""
        host = torch.empty_like(tensor, device="cpu", pin_memory=True)
        return host.copy_(tensor, non_blocking=True)

    def point(self, stream: Any) -> Any:
        """An event at which all is done that a stream was given so far."""
        return stream.record_event()


STREAMS: Final[Mapping[str, Streams]] = MappingProxyType({"cuda": CudaStreams()})


def use(history: History) -> None:
    """Say that the current stream is going to read the deltas of a span.

    Where it is not the stream that had them last, it waits for that one, which costs the host
    nothing, and the memory stays until it is done. On devices without streams there is nothing to
    say.
    """
    if not history.deltas:
        return
    device = history.deltas[0][0].device
    streams = STREAMS.get(device.type)
    if streams is None:
        return
    here = streams.current(device)
    if here == history.stream:
        return
    if history.stream is not None:
        streams.order(here, history.stream)
        for deltas in history.deltas:
            for delta in deltas:
                streams.keep(delta, here)
    history.stream = here


def to_host(history: History) -> tuple[list[tuple[torch.Tensor, ...]], Any]:
    """Start copying the deltas of a span into the host's memory, in this thread's stream.

    Returns:
        The copies, and the event at which they are done; None where they are already.
    """
    use(history)
    device = history.deltas[0][0].device if history.deltas else torch.device("cpu")
    streams = STREAMS.get(device.type)
    if streams is None:
        return [tuple(delta.to("cpu") for delta in some) for some in history.deltas], None
    copies = [tuple(streams.to_host(delta) for delta in some) for some in history.deltas]
    here = streams.current(device)
    for some in history.deltas:
        for delta in some:
            streams.keep(delta, here)  # which may have been made on another, and is let go of now
    return copies, streams.point(here)
