"""A session: the trajectories of one request, and where in them the next call belongs.

`context.py` knows in which threads and tasks a session is active, `trajectory.py` what is known of
its trajectory. See docs/sessions.md.
"""

from __future__ import annotations

import threading
from collections.abc import Hashable, Sized
from contextlib import AbstractContextManager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Final, cast, final

from deltapass.errors import NoStepError, StateError, StepOutsideError, warn
from deltapass.schedule.explicit import AnySchedule
from deltapass.schedule.given import GivenSchedule, schedule_or_none
from deltapass.sessions import context
from deltapass.sessions.context import Position, Stay
from deltapass.sessions.counting import step_count, whole_step
from deltapass.sessions.deltas import Doubt
from deltapass.sessions.log import Log
from deltapass.sessions.report import Cause, Entry, SessionReport
from deltapass.sessions.suspension import Suspended, bring_back, set_aside, throw_away
from deltapass.sessions.trajectory import NEW, Place, Trajectory

MANY: Final = 3  # planned cached steps that had to be full before it is said


@final
class Session:
    """The state of one request's trajectory. Use it as a context manager, and tell it every step.

    Example:
        with deltapass.session(steps=20) as s:
            for i, t in enumerate(timesteps):
                s.step(i)
                noise = model(latents, t)

    A branch is one of several calls within a step, such as the conditional and unconditional
    halves of guidance. Calls under one announcement are told apart by their order.

    Attributes:
        steps: Steps of a trajectory; None until a pipeline's scheduler says.
        fixed: Whether `steps` was given by the caller.
        entries: What was done so far: the newest calls, as `Entry`.
        observer, sampler: Who looks on, for a fit; what gives a `Sampler`, in a pipeline.
    """

    def __init__(
        self,
        steps: int | None = None,
        *,
        timesteps: Sized | None = None,
        schedule: GivenSchedule | None = None,
    ) -> None:
        self.steps = step_count(steps, timesteps)
        self.fixed = self.steps is not None
        self.entries = Log()
        self.observer: Any = None
        self.sampler: Any = None
        self._schedule = schedule_or_none(schedule)
        self._lock = threading.RLock()
        self._stays: list[Stay] = []
        self._trajectory = Trajectory(0)
        self._suspended: Suspended | None = None

    # ---- where it is active -------------------------------------------------------------------

    def __enter__(self) -> Session:
        with self._lock:
            self._stays.append(context.enter(self))
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        with self._lock:
            here = context.stay_of(self)
            stay = here if here in self._stays else self._stays[-1]
            self._stays.remove(stay)
            context.leave(stay)
            last, told = not self._stays, self._trajectory.told
            if last:
                self._begin(NEW)
        if last and kind is None:
            self._say_if_nothing_was_cached(told)

    @property
    def active(self) -> bool:
        """Whether it is entered anywhere by `with session:`."""
        return bool(self._stays)

    def at(
        self, step: int, *, branch: Hashable = None, again: bool = False
    ) -> AbstractContextManager[Session]:
        """Make the session active at one step, for the calls inside; nothing is freed on leaving.

        For requests whose steps are run in turn, as in continuous batching:
            for request in requests:
                with request.session.at(request.step):
                    noise = model(request.latents, request.timestep)

        Args:
            step: The step, from 0.
            branch: Its branch.
            again: Calls inside go on counting those made under this step and branch before,
                as further branches, instead of being a step that is told twice.

        Raises:
            StepOutsideError: If `step` is not a step of this session.
            StateError: If the session has no number of steps.
        """
        return context.Visit(self, partial(self._announce, step, branch, again=again))

    # ---- where it stands ----------------------------------------------------------------------

    def step(self, index: int, *, branch: Hashable = None) -> None:
        """Say which step (from 0), and which branch of it, the next call belongs to.

        The first step told is where the trajectory starts. A step below the last one starts a
        new trajectory. A step told twice, with a call in between, cannot be told from another
        branch: the calls of that step and the next run in full. Name the branches.

        Raises:
            StepOutsideError: If the index is not a step of this session.
            StateError: If the session is not active here, or has no number of steps.
        """
        if context.stay_of(self) is None:
            raise StateError(
                "step() of a session that is not active in this thread or task",
                "Call it inside `with session:`, or use `with session.at(i):`",
            )
        context.move(self, self._announce(index, branch))

    def _announce(self, index: int, branch: Hashable, *, again: bool = False) -> Position:
        with self._lock:
            if self.steps is None:
                raise StateError("a session without a number of steps", "Give steps= or timesteps=")
            index = whole_step(index)
            if not 0 <= index < self.steps:
                raise StepOutsideError(index, self.steps)
            last, start = self._trajectory.step, self._trajectory.start
            if last is not None and index < last:
                back = Doubt(Cause.BACK, f"went back from step {last} to {index}")
                self._begin(NEW if index == start else back)
            return self._trajectory.announce(index, branch, again=again)

    def restart(self, steps: int | None = None) -> None:
        """Begin a new trajectory, of another number of steps if one is given; frees the deltas.

        Raises:
            StateError: If `steps` is not a number of steps.
        """
        with self._lock:
            if steps is not None:
                self.steps = step_count(steps, None)
            self._begin(NEW)

    def follow(self, steps: int | None) -> None:
        """As `restart`, for somebody who knows the number of steps, such as a scheduler.

        Raises:
            StateError: If the session was opened for another number of steps.
        """
        if self.fixed and steps != self.steps:
            raise StateError(
                f"a session of {self.steps} steps around a pipeline that takes {steps}",
                "Open it with steps=None: the pipeline's scheduler knows",
            )
        self.restart(steps)

    def _begin(self, origin: Doubt) -> None:
        throw_away(self._suspended)
        self._suspended = None
        last = self._trajectory
        self._trajectory = Trajectory(last.number + last.placed, origin)

    # ---- what the selector asks ---------------------------------------------------------------

    def place(self, owner: Any) -> Place:
        """Where this call of a model belongs; brings suspended deltas back.

        Args:
            owner: Stands for the model: its first weight.

        Raises:
            NoStepError: If `step` has not been called yet in this thread or task.
            StateError: If suspended deltas cannot be brought back, or iterators told two sessions
                their steps before either's model was called.
        """
        position = context.called(self)
        with self._lock:
            if position is None or position.of is not self._trajectory.token:
                raise NoStepError
            if self._suspended is not None:
                self.resume()
            return self._trajectory.place(position, owner)

    def take_back(self, owner: Any) -> None:
        """Uncount a call that failed: its second try is no other branch."""
        position = context.position_of(self)
        with self._lock:
            if position is not None:
                self._trajectory.take_back(position, owner)

    # ---- the schedule -------------------------------------------------------------------------

    @property
    def schedule(self) -> AnySchedule | None:
        """Replaces the compiled models' schedule. A change drops all deltas; a bad one raises."""
        return self._schedule

    @schedule.setter
    def schedule(self, schedule: GivenSchedule | None) -> None:
        chosen = schedule_or_none(schedule)
        with self._lock:
            self._schedule = chosen
            self._drop(Doubt(Cause.SCHEDULE, "the session was given another schedule"))

    # ---- the deltas ---------------------------------------------------------------------------

    def free(self) -> None:
        """Let go of all deltas; the next call of every branch refreshes."""
        with self._lock:
            self._drop(Doubt(Cause.NO_DELTA, "the deltas were freed"))

    def _drop(self, doubt: Doubt) -> None:
        throw_away(self._suspended)
        self._suspended = None
        self._trajectory.drop(doubt)

    def suspend(self, path: str | Path | None = None) -> None:
        """Set the deltas aside: into host memory, or into a new file, which is removed again.

        For a request that is preempted. `resume`, or the next call, brings them back unchanged.

        Raises:
            StateError: If it is suspended already, or the file exists already or cannot be
                written; nothing is lost then.
        """
        with self._lock:
            if self._suspended is not None:
                raise StateError("the session is suspended already", "Call resume() first")
            lanes = list(self._trajectory.lanes)
            self._suspended = set_aside(lanes, None if path is None else Path(path))

    def resume(self) -> None:
        """Bring the deltas back that `suspend` set aside; without any, do nothing.

        Raises:
            StateError: If their file is gone or was changed; `free` lets go of them.
        """
        with self._lock:
            if self._suspended is not None:
                bring_back(self._suspended)
                self._suspended = None
                self._trajectory.let_go()

    @property
    def nbytes(self) -> int:
        """Bytes (not KiB) of all deltas held in memory."""
        with self._lock:
            return sum(lane.nbytes for lane in self._trajectory.lanes)

    # ---- the report ---------------------------------------------------------------------------

    def located(self, entry: Entry) -> Entry:
        """An entry with the place where this session stands, as far as it is known."""
        here, number = context.position_of(self), self._trajectory.number
        step, branch = (None, None) if here is None else (here.step, here.branch)
        return replace(entry, trajectory=number, step=step, branch=branch)

    def _say_if_nothing_was_cached(self, told: int) -> None:
        if self.entries.cached:
            return
        forced = [entry for entry in self.entries if entry.forced]
        if self.fixed and told >= MANY and not self.entries:
            text = f"{told} steps were told, but no model compiled by deltapass was called"
        elif len(forced) >= MANY:
            text = f"all {self.entries.count} calls were full; last: {forced[-1].why}"
        else:
            return
        warn(f"nothing cached: {text}")

    def note_uncached(self, reason: str) -> None:
        """Take note of a call of a graph that cannot be cached; once for all parts of a model."""
        refused = Entry(step=None, planned=None, realised=None, cause=Cause.REFUSED, reason=reason)
        entry = self.located(refused)
        if not self.entries or self.entries[-1] != entry:
            self.entries.note_entry(entry)

    def report(self) -> SessionReport:
        """What was planned and what was run, call by call."""
        return self.entries.report()


def session(
    steps: int | None = None,
    *,
    timesteps: Sized | None = None,
    schedule: GivenSchedule | None = None,
) -> Session:
    """A session for one trajectory.

    Args:
        steps: Steps of the trajectory. May be left out inside an attached pipeline, which knows.
        timesteps: The timesteps, one a step, instead of their number; only counted, never read.
        schedule: Replaces the compiled model's own: an object, a name or the path of a file.

    Raises:
        StateError: If `steps` is no number of steps, or not that of the timesteps.
        ScheduleError, OptionError: If it is no schedule that can be used.
    """
    return Session(steps, timesteps=timesteps, schedule=schedule)


def active_session() -> Session | None:
    """The innermost session that is active in this thread or task, and not yet left elsewhere."""
    return cast("Session | None", context.innermost())
