"""Which trajectory, which step, which branch: the state between calls.

A `Session` is the state of one trajectory (or several in a row) of one caller: the current step,
and for every compiled model and branch the deltas of the last refreshes. With nothing given, an
implicit session per thread finds the step from the timestep input (docs/guide.md).
"""

from __future__ import annotations

from collections.abc import Hashable
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any, Final, final
from weakref import WeakKeyDictionary

import torch

from deltapass.errors import NoStepError, StateError, StepOutsideError
from deltapass.report import Entry, SessionReport
from deltapass.schedule import AnySchedule, Span

_ACTIVE: Final[ContextVar[Session | None]] = ContextVar("deltapass_session", default=None)


@final
@dataclass(slots=True)
class History:
    """The newest deltas of one span, at most two refreshes old; `at` holds their steps."""

    deltas: list[tuple[torch.Tensor, ...]] = field(default_factory=list)
    at: list[int] = field(default_factory=list)

    def push(self, deltas: tuple[torch.Tensor, ...], step: int, keep: int) -> None:
        """Add the newest deltas and keep the last `keep`."""
        self.deltas = [deltas, *self.deltas][:keep]
        self.at = [step, *self.at][:keep]

    def make_room(self, keep: int) -> None:
        """Let go of what a refresh is about to replace, before it needs the memory."""
        del self.deltas[keep:], self.at[keep:]


@final
@dataclass(slots=True)
class BranchState:
    """What one branch of one trajectory left behind on one compiled model."""

    histories: dict[Span, History] = field(default_factory=dict)
    last_refresh: int | None = None
    weights: int | None = None
    conditioning: tuple[float, ...] | None = None
    changes: int = 0

    def clear(self) -> None:
        """Forget everything: the next call refreshes."""
        self.histories.clear()
        self.last_refresh = None

    @property
    def nbytes(self) -> int:
        """Bytes (not KiB) of the deltas held."""
        return sum(
            delta.nbytes
            for history in self.histories.values()
            for deltas in history.deltas
            for delta in deltas
        )


@final
class Session:
    """The state of one trajectory. Use it as a context manager, and tell it every step.

    Example:
        with deltapass.session(steps=20) as s:
            for i, t in enumerate(timesteps):
                s.step(i)
                noise = model(latents, t)

    A branch is one of several calls within a step, such as the conditional and unconditional
    halves of guidance. Unnamed branches are told apart by their order within the step.
    """

    def __init__(self, steps: int, *, schedule: AnySchedule | None = None) -> None:
        if isinstance(steps, bool) or not isinstance(steps, int) or steps < 1:
            raise StateError(f"a session of {steps!r} steps", "Give the number of steps, 1 or more")
        self.steps = steps
        self.schedule = schedule
        self.entries: list[Entry] = []
        self._step: int | None = None
        self._branch: Hashable = None
        self._calls: dict[Any, int] = {}
        self._states: WeakKeyDictionary[Any, dict[Hashable, BranchState]] = WeakKeyDictionary()
        self._tokens: list[Any] = []

    def __enter__(self) -> Session:
        self._tokens.append(_ACTIVE.set(self))
        return self

    def __exit__(self, *_: object) -> None:
        _ACTIVE.reset(self._tokens.pop())
        if not self._tokens:
            self.free()
            self._step = None

    def step(self, index: int, *, branch: Hashable = None) -> None:
        """Say which step (from 0), and which branch of it, the next call belongs to.

        Raises:
            StepOutsideError: If the index is not a step of this session.
        """
        if isinstance(index, bool) or not 0 <= index < self.steps:
            raise StepOutsideError(index, self.steps)
        if self._step is not None and index < self._step:
            self.free()  # the session is used again for a new trajectory
        if (index, branch) != (self._step, self._branch):
            self._calls.clear()
        self._step, self._branch = index, branch

    def place(self, model: Any) -> tuple[int, Hashable]:
        """The step and the branch of this call of a model.

        Raises:
            NoStepError: If `step` has not been called yet.
        """
        if self._step is None:
            raise NoStepError
        # A second call without a new `step` is another branch, never a repetition: a branch
        # taken for a repetition would be given the other branch's delta.
        nth = self._calls.get(id(model), 0)
        self._calls[id(model)] = nth + 1
        return self._step, (self._branch, nth)

    def state(self, model: Any, branch: Hashable) -> BranchState:
        """The state of one branch on one compiled model; empty at first."""
        return self._states.setdefault(model, {}).setdefault(branch, BranchState())

    def free(self) -> None:
        """Let go of all deltas; the next call of every branch refreshes."""
        self._states.clear()

    @property
    def nbytes(self) -> int:
        """Bytes (not KiB) of all deltas held."""
        return sum(s.nbytes for states in self._states.values() for s in states.values())

    def refused(self, reason: str) -> None:
        """Note a call that ran the full graph because nothing could be planned for it."""
        step = self._step if self._step is not None else -1
        self.entries.append(
            Entry(step=step, branch=self._branch, planned=None, realised=None, reason=reason)
        )

    def report(self) -> SessionReport:
        """What was planned and what was run, step by step."""
        return SessionReport(tuple(self.entries))


def session(steps: int, *, schedule: AnySchedule | None = None) -> Session:
    """A session for one trajectory of `steps` steps.

    Args:
        steps: Steps of the trajectory.
        schedule: Replaces the compiled model's own schedule for this session.

    Raises:
        StateError: If `steps` is not a number of steps.
    """
    return Session(steps, schedule=schedule)


def active_session() -> Session | None:
    """The innermost session entered in this thread or task."""
    return _ACTIVE.get()
