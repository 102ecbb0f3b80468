"""One way to sample, and what a way must know of the model it is made for."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, final

from deltapass.bench.suite import MethodSpec
from deltapass.schedule.budget import StepMacs
from deltapass.schedule.explicit import AnySchedule

Kind = Literal["plain", "steps", "cache", "rival"]


@final
@dataclass(frozen=True, kw_only=True)
class Method:
    """One way to sample.

    Attributes:
        name: Unique in a run: "delta-dit-1.6x".
        label: As tables show it.
        kind: "plain" is the model itself, "steps" that with fewer or more of them.
        steps: Of its trajectories.
        schedule: What is cached when; None where the model is not compiled by our backend.
        options: Of the backend besides the schedule; methods that agree in them share a compile.
        lowering: In place of the run's; None keeps that.
        solver: Scheduler class of diffusers, in place of the suite's.
        weights: "int8" where linear layers are quantised first; None leaves them.
        guided: Steps with guidance, behind which the unconditional half is left out; None: all.
        rival: Of the table of rivals, which `settings` are for; None where it is no rival.
        settings: As the suite gives them.
        remark: Why it is there.
    """

    name: str
    label: str
    kind: Kind
    steps: int
    schedule: AnySchedule | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    lowering: str | None = None
    solver: str | None = None
    weights: str | None = None
    guided: int | None = None
    rival: str | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)
    remark: str = ""

    @property
    def caches(self) -> bool:
        """Whether it is ours and ever skips anything: its images must not be plain ones."""
        return self.schedule is not None and getattr(self.schedule, "caches", True)


@final
@dataclass(frozen=True, kw_only=True)
class Context:
    """What methods are made for.

    Attributes:
        model: Its name, for messages.
        steps: Of the reference.
        folder: Of the model, with schedules that were tuned to it; None without one.
        blocks: Of its stack; None where none was found.
        step_macs: MACs of a step by the span it skips, for budgets; None where nobody knows them.
    """

    model: str
    steps: int
    folder: Path | None = None
    blocks: int | None = None
    step_macs: StepMacs | None = None


MakeMethod = Callable[[MethodSpec, Context], Method]
