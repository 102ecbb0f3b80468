"""Three times of one batch: from end to end, in the denoiser, and of one call of it."""

from __future__ import annotations

import statistics
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any, final

import msgspec
import torch
from torch import nn


@final
class Taken(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Seconds of one batch.

    Attributes:
        end_to_end: From the call of the pipeline to the images on the host.
        denoiser: Of all calls of the denoiser in it.
        step: Median of these.
        worked: What this thread worked of `end_to_end`; less where it had to wait for others.
    """

    end_to_end: float
    denoiser: float
    step: float
    worked: float


@final
@dataclass(slots=True)
class CallClock:
    """Times every call of a denoiser, by hooks around it; on a GPU by events, without waiting.

    Attributes:
        device: Of the denoisers.
        stand_still: Called after every call; gives the seconds for which others had the machine.
        away: Sum of these seconds.
    """

    device: torch.device
    stand_still: Callable[[], float] | None = None
    away: float = 0.0
    _begun: list[Any] = field(default_factory=list)
    _ended: list[Any] = field(default_factory=list)

    @contextmanager
    def watching(self, models: Iterable[nn.Module]) -> Iterator[None]:
        """Time the calls within, of this thread alone: another may call the same models."""
        mine = threading.get_ident()

        def begin(*_: Any) -> None:
            if threading.get_ident() == mine:
                self._note(self._begun)

        def end(*_: Any) -> None:
            if threading.get_ident() == mine:
                self._note(self._ended)
                if self.stand_still is not None:
                    self.away += self.stand_still()

        with ExitStack() as after:
            for model in models:
                after.callback(model.register_forward_pre_hook(begin).remove)
                after.callback(model.register_forward_hook(end).remove)
            yield

    def seconds(self) -> list[float]:
        """Of every call; waits for the device."""
        pairs = zip(self._begun, self._ended, strict=True)
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
            return [begun.elapsed_time(ended) / 1e3 for begun, ended in pairs]
        return [ended - begun for begun, ended in pairs]

    def _note(self, where: list[Any]) -> None:
        if self.device.type != "cuda":
            where.append(time.perf_counter())
            return
        event: Any = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        event.record()
        where.append(event)


def timed(
    run: Callable[[CallClock], Any],
    device: torch.device,
    stand_still: Callable[[], float] | None = None,
) -> Taken:
    """Times of one run, which is given the clock that its denoisers are watched by.

    Seconds for which it stood still, if anything makes it, are not among them.
    """
    clock = CallClock(device, stand_still)
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    wall, worked = time.perf_counter(), time.thread_time()
    run(clock)
    taken, worked = time.perf_counter() - wall - clock.away, time.thread_time() - worked
    calls = clock.seconds()
    return Taken(
        end_to_end=taken,
        denoiser=sum(calls),
        step=statistics.median(calls) if calls else 0.0,
        worked=worked,
    )
