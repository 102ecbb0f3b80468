"""A device for graphs that is the CPU, and as unforgiving as a GPU where a graph is misused.

A capture records every operator with the memory it reads and writes; a replay runs these operators
on this memory and looks at nothing else. So an input that was not copied in is the old one, and a
weight that moved is read where it lay. When the event after a call is recorded, all that graphs
have written is spoiled, as the next replay from a shared pool would spoil it. A replay outside an
event's wait and record, or of two threads at once, is an error.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

from deltapass.cudagraphs.device import Given

SPOILED = 113  # of types that have no NaN
UNFILLED = ("empty", "new_empty")


class Recorder:
    """The device; `events` is what was done, in order. `replays` counts."""

    def __init__(self, place: torch.device | None = None, limit: int = 1 << 40) -> None:
        self.limit = limit
        self.events: list[str] = []
        self.graphs: list[RecordedGraph] = []
        self.busy: int | None = None
        self.fails = ""

    def event(self) -> RecordedEvent:
        return RecordedEvent(self)

    def capture(self, run: Callable[[], Given]) -> RecordedGraph:
        self.check()
        for _ in range(2):
            run()
        if self.fails:
            raise RuntimeError(self.fails)
        with Recording() as recording:
            given = run()
        graph = RecordedGraph(self, recording.calls, given)
        self.events.append("capture")
        self.graphs.append(graph)
        return graph

    @property
    def captures(self) -> int:
        return self.events.count("capture")

    @property
    def replays(self) -> int:
        return self.events.count("replay")

    def check(self) -> None:
        assert self.busy == threading.get_ident(), "outside wait and record, or of another thread"


class RecordedEvent:
    def __init__(self, device: Recorder) -> None:
        self._device = device

    def wait(self) -> None:
        assert self._device.busy is None, "two calls at once on the same static memory"
        self._device.busy = threading.get_ident()
        self._device.events.append("wait")

    def record(self) -> None:
        self._device.check()
        for graph in self._device.graphs:
            graph.spoil()
        self._device.events.append("record")
        self._device.busy = None

    def synchronize(self) -> None:
        self._device.events.append("synchronize")


class Recording(TorchDispatchMode):
    """Records operators, with their tensors as they lie in memory now."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Any, Any, Any, Any]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        # An alias keeps to the memory, whatever the object is given later.
        args, kwargs = tree_map_only(torch.Tensor, torch.Tensor.detach, (args, kwargs or {}))
        made = func(*args, **kwargs)
        self.calls.append((func, args, kwargs, made))
        return made


class RecordedGraph:
    def __init__(self, device: Recorder, calls: list[tuple[Any, Any, Any, Any]], given: Given):
        self._device, self._calls, self.given = device, calls, given
        self._own = [each for call in calls for each in fresh(*call)]
        self.nbytes = sum(each.nbytes for each in self._own)

    def replay(self) -> None:
        self._device.check()
        with torch.no_grad():
            for func, args, kwargs, made in self._calls:
                time.sleep(0)  # another thread may come in here
                again = func(*args, **kwargs)
                pairs = zip(tree_leaves(made), tree_leaves(again), strict=True)
                new = {id(each) for each in fresh(func, args, kwargs, made)}
                for old, value in pairs:
                    if id(old) in new and old.data_ptr() != value.data_ptr():
                        old.copy_(value)
        self._device.check()
        self._device.events.append("replay")

    def spoil(self) -> None:
        with torch.no_grad():
            for each in self._own:
                floating = each.is_floating_point() or each.is_complex()
                each.fill_(float("nan") if floating else each.dtype is torch.bool or SPOILED)


def fresh(func: Any, args: Any, kwargs: Any, made: Any) -> list[torch.Tensor]:
    """Results that lie in new memory: neither views nor what was written to."""
    taken = {
        each.untyped_storage().data_ptr() for each in tree_leaves((args, kwargs)) if is_tensor(each)
    }
    if func._schema.name.split("::")[1].startswith(UNFILLED):
        return [each for each in tree_leaves(made) if is_tensor(each)]
    return [
        each
        for each in tree_leaves(made)
        if is_tensor(each) and each.untyped_storage().data_ptr() not in taken
    ]


def is_tensor(value: Any) -> bool:
    return isinstance(value, torch.Tensor)
