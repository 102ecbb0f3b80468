"""What caching saved in one run of a pipeline, by the clock.

MACs say what could be saved. Here the steps of the run itself are compared: those that ran in full
with those that were cached, everything between two steps of the scheduler included.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from statistics import median
from typing import Any, Final, final

import torch

from deltapass.errors import counted
from deltapass.sessions.report import Entry, SessionReport

MORE: Final = "deltapass.last_report(pipe) shows every step"
Clock = Callable[[], float]  # seconds, once the device has done what it was given


@final
@dataclass(frozen=True, kw_only=True, slots=True)
class StepTimes:
    """How long the steps of one trajectory took.

    Attributes:
        steps: Steps that were run.
        cached: Those of which every call skipped a span.
        full_ms: Median milliseconds of a step that ran in full; the first, which may compile, is
            not counted. None where there is no other.
        cached_ms: The same of a cached step.
    """

    steps: int
    cached: int
    full_ms: float | None
    cached_ms: float | None

    @property
    def plain_ms(self) -> float | None:
        """What all steps take in full; None if it was not measured."""
        return None if self.full_ms is None else self.full_ms * self.steps

    @property
    def saved_ms(self) -> float | None:
        """What the cached steps took less than as many in full; None if it was not measured."""
        if self.full_ms is None or self.cached_ms is None:
            return None
        return (self.full_ms - self.cached_ms) * self.cached

    @property
    def speedup(self) -> float | None:
        """All steps in full over what was run; None if it was not measured."""
        plain, saved = self.plain_ms, self.saved_ms
        return None if plain is None or saved is None else plain / (plain - saved)


def step_times(report: SessionReport, seconds: Mapping[int, float]) -> StepTimes:
    """The times of a run's last trajectory.

    Args:
        report: What its calls did.
        seconds: How long each step took.
    """
    cached = {step: all(e.realised for e in some) for step, some in _by_step(report).items()}
    mixed = {s for s, some in _by_step(report).items() if any(e.realised for e in some)}
    full = [seconds[step] for step in cached if step not in mixed and step in seconds]
    short = [seconds[step] for step, all_cached in cached.items() if all_cached and step in seconds]
    return StepTimes(
        steps=len(cached),
        cached=sum(cached.values()),
        full_ms=1e3 * median(full[1:]) if full[1:] else None,
        cached_ms=1e3 * median(short[1:]) if short[1:] else None,
    )


def _by_step(report: SessionReport) -> dict[int, list[Entry]]:
    """The calls of the last trajectory, by step in the order of time."""
    found: dict[int, list[Entry]] = {}
    last = max((entry.trajectory for entry in report.entries), default=0)
    for entry in report.entries:
        if entry.trajectory == last and entry.step is not None:
            found.setdefault(entry.step, []).append(entry)
    return found


def line(times: StepTimes, report: SessionReport) -> str:
    """What a run did and what that saved, or cost, for people."""
    if not report.entries:
        return "nothing cached: no call of a denoiser got as far as a schedule; a warning says why"
    steps = f"{counted(times.steps, 'step')}, {times.cached} of them cached"
    if not times.cached:
        return f"{steps}: {_why_not(report)}. {MORE}"
    plain, saved, speedup = times.plain_ms, times.saved_ms, times.speedup
    if plain is None or saved is None or speedup is None:
        return f"{steps}; too few to measure what that saves. {MORE}"
    seconds = _seconds(abs(saved))
    gain = f"cost {seconds} on top of" if saved < 0 else f"saved {seconds} of"
    return (
        f"{steps}, {gain} {_seconds(plain)} ({speedup:.2f}x), measured: "
        f"{times.full_ms:.1f} ms a step in full, {times.cached_ms:.1f} ms cached. {MORE}"
    )


def _why_not(report: SessionReport) -> str:
    """Why no step was cached as a whole."""
    if report.cached:
        return "only some of the calls of a step were"
    unplanned = (entry.why for entry in reversed(report.entries) if entry.forced or entry.refused)
    return next(unplanned, "") or "the schedule plans none in this trajectory"


def _seconds(milliseconds: float) -> str:
    return f"{milliseconds / 1e3:.{2 if milliseconds < 1e4 else 1}f} s"


def clock_of(pipe: Any) -> Clock:
    """A clock for the device that a pipeline runs on: on a GPU it waits until the work is done."""
    device = torch.device(getattr(pipe, "_execution_device", None) or "cpu")
    here = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    if here is None or device.type != here.type:
        return time.perf_counter

    def clock() -> float:
        torch.accelerator.synchronize(device)
        return time.perf_counter()

    return clock
