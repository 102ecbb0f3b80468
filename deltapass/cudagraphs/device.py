"""What must be known of a device to capture graphs on it; `cuda.py` is the one that is used.

Tests put another in its place, which replays on the CPU and spoils what a graph may not keep.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import torch

# What a variant gives: the model's outputs, new deltas.
Given = tuple[tuple[Any, ...], tuple[torch.Tensor, ...]]


class Event(Protocol):
    """A point in the work of a stream. Before it is recorded nobody waits for it."""

    def record(self) -> None:
        """Note all that the current stream was given so far."""

    def wait(self) -> None:
        """Let the current stream wait for what was noted; the host goes on."""

    def synchronize(self) -> None:
        """Let the host wait for it."""


class CapturedGraph(Protocol):
    """The kernels of one run, with the addresses they read and write.

    Attributes:
        given: What the run gave. The next replay of any graph of the device writes there.
        nbytes: Bytes (not KiB) that the graph holds.
    """

    given: Given
    nbytes: int

    def replay(self) -> None:
        """Launch them on the current stream."""


class Device(Protocol):
    """A device for the graphs of one model, which share a memory pool.

    Attributes:
        limit: Bytes (not KiB) that these graphs may hold together.
    """

    limit: int

    def event(self) -> Event:
        """A new event."""

    def capture(self, run: Callable[[], Given]) -> CapturedGraph:
        """Warm a function up and capture it, after all that the current stream was given so far.

        Raises:
            RuntimeError: If it does what no graph can hold, or there is no memory for it.
        """
