"""Graphs by torch.cuda. What is done here can only be proven on a GPU: `pytest -m gpu`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, final

import torch

from deltapass.cudagraphs.device import Given

WARM_UPS: Final = 2  # runs before a capture: kernels are loaded and tuned, workspaces made
SHARE: Final = 8  # graphs of a model may hold this part of a device's memory


@final
class CudaEvent:
    """An event between streams of one device."""

    def __init__(self, place: torch.device) -> None:
        self._place = place
        self._event: Any = torch.cuda.Event()  # type: ignore[no-untyped-call]

    def record(self) -> None:
        """Note all that the current stream was given so far."""
        self._event.record(torch.cuda.current_stream(self._place))

    def wait(self) -> None:
        """Let the current stream wait for what was noted."""
        torch.cuda.current_stream(self._place).wait_event(self._event)

    def synchronize(self) -> None:
        """Let the host wait for it."""
        self._event.synchronize()


@final
class CudaGraph:
    """A captured graph, and what it gives."""

    def __init__(self, graph: Any, given: Given, nbytes: int) -> None:
        self._graph = graph
        self.given, self.nbytes = given, nbytes

    def replay(self) -> None:
        """Launch it on the current stream."""
        self._graph.replay()


@final
class CudaDevice:
    """One GPU, with a memory pool for the graphs of one model."""

    def __init__(self, place: torch.device) -> None:
        self.place = place
        self.limit = int(torch.cuda.get_device_properties(place).total_memory) // SHARE
        self._pool: Any = torch.cuda.graph_pool_handle()
        self._side: Any = torch.cuda.Stream(place)  # type: ignore[no-untyped-call]

    def event(self) -> CudaEvent:
        """A new event."""
        return CudaEvent(self.place)

    def capture(self, run: Callable[[], Given]) -> CudaGraph:
        """Warm up and capture on a stream of its own.

        Other threads may go on working with the device meanwhile. Random numbers drawn by the
        warm-ups do not count.

        Raises:
            RuntimeError: If it does what no graph can hold, or there is no memory for it.
        """
        with torch.cuda.device(self.place):
            current = torch.cuda.current_stream()
            self._side.wait_stream(current)
            devices = [torch.cuda.current_device()]
            with torch.cuda.stream(self._side), torch.random.fork_rng(devices):
                for _ in range(WARM_UPS):
                    run()
            before = torch.cuda.memory_reserved()
            graph: Any = torch.cuda.CUDAGraph()
            capturing: Any = torch.cuda.graph
            with capturing(
                graph, pool=self._pool, stream=self._side, capture_error_mode="thread_local"
            ):
                given = run()
            current.wait_stream(self._side)
            return CudaGraph(graph, given, max(torch.cuda.memory_reserved() - before, 0))
