"""Stage 7, first half: what a call is (step, branch) and what the schedule plans for it.

An explicit session says so itself. Otherwise the timestep input tells, by way of a tracker a
thread; see docs/sessions.md for what that can and cannot know.
"""

from __future__ import annotations

import asyncio
import threading
import weakref
from collections.abc import Callable, Hashable, Iterable, Mapping, MutableSequence, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Final, final

from torch.utils.weak import WeakIdKeyDictionary

from deltapass.errors import StepUnknownError
from deltapass.graph.program import Role
from deltapass.schedule.emissions import read_after
from deltapass.schedule.rules import AnySchedule, Span, Table
from deltapass.selector.model import Facts, Repertoire
from deltapass.selector.signals import SignalReader, signal_reader
from deltapass.selector.timestep import Place, TimestepTracker
from deltapass.sessions.deltas import BranchState
from deltapass.sessions.report import Entry
from deltapass.sessions.session import Session, active_session

MANY_TABLES: Final = 256  # a server's clients may bring any number of schedules
Rows = tuple[dict[str, Any], ...]

# Implicit trajectories of this thread or task, by model: a new one starts with none. With whose
# they are, because a copied context takes its variables to another thread or task.
_TRACKERS: Final[ContextVar[tuple[weakref.ref[Any], WeakIdKeyDictionary] | None]] = ContextVar(
    "deltapass_trackers", default=None
)


@final
@dataclass(frozen=True, kw_only=True, slots=True)
class Moment:
    """What is known about one call before it runs.

    Attributes:
        trajectory: Which trajectory of its session or thread, from 0.
        step: Step on the trajectory, from 0.
        before: The step told before this one, whichever branch it was for.
        branch: Which call of the step.
        planned: The span to skip, or None for a refresh.
        emits: Gives the spans whose deltas later cached steps read, should this call refresh.
        fresh_since: The last planned refresh; deltas from before it are too old.
        keeps: Spans that later steps read; the deltas of others can go. None: not known.
        state: Deltas of this branch.
        entries: Where to note what was done.
        certain: Values must be read where an object may have changed unseen.
    """

    trajectory: int
    step: int
    before: int | None
    branch: Hashable
    planned: Span | None
    emits: Callable[[], frozenset[Span]]
    fresh_since: int
    keeps: frozenset[Span] | None
    state: BranchState
    entries: MutableSequence[Entry]
    certain: bool


@final
@dataclass
class Moments:
    """Finds the moment of every call of one compiled model.

    `starts` counts the calls without a session, one after the other, that each looked like the
    first step of a trajectory. The tables of schedules are all else it keeps.
    """

    facts: Facts
    variants: Repertoire
    reader: SignalReader | None
    owner: int | None
    starts: int = 0
    _known: dict[tuple[object, ...], Rows] = field(default_factory=dict)

    def find(self, arguments: Sequence[Any]) -> Moment:
        """The moment of a call with these inputs.

        Raises:
            StepUnknownError: If nothing says which step this is.
            NoStepError: If the active session has not been told its step.
            ScheduleError: If the schedule does not fit the session's trajectory.
        """
        session = active_session()
        if session is not None:
            return self._explicit(session, arguments)
        return self._implicit(arguments)

    def owner_of(self, arguments: Sequence[Any]) -> Any:
        """What stands for the model: its first weight, which all its graphs share."""
        if self.facts.owner is not None:
            return self.facts.owner()  # alive: it is being called
        return self if self.owner is None else arguments[self.owner]

    def _explicit(self, session: Session, arguments: Sequence[Any]) -> Moment:
        owner = self.owner_of(arguments)
        place = session.place(owner)
        try:
            schedule = session.schedule or self.facts.schedule
            rows = self._rows(schedule, session.steps or 1, place.start)
        except BaseException:  # a variant could not be made: this call does not count
            session.take_back(owner)
            raise
        return Moment(
            **rows[place.step],
            trajectory=place.trajectory,
            step=place.step,
            before=place.before,
            branch=place.branch,
            state=place.state,
            entries=session.entries,
            certain=False,
        )

    def _implicit(self, arguments: Sequence[Any]) -> Moment:
        if self.reader is None:
            raise StepUnknownError("no single timestep is among the model's inputs")
        signals = self.reader.read(arguments)
        tracker = tracker_of(self.owner_of(arguments))
        place = tracker.locate(signals.timestep, signals.sample)
        self.starts = 0 if place.step else self.starts + 1
        if place.problem:
            raise StepUnknownError(place.problem)
        known: dict[str, Any] = {
            "trajectory": tracker.trajectory,
            "step": place.step,
            "before": place.step - 1 if place.step else None,
            "branch": (None, place.branch),
            "state": tracker.state(place.branch),
            "entries": tracker.entries,
            "certain": True,
        }
        steps = self.facts.steps
        if steps is None:
            return self._by_level(place, known)
        if place.step >= steps:
            raise StepUnknownError(f"the trajectory is longer than the {steps} steps announced")
        return Moment(**self._rows(self.facts.schedule, steps)[place.step], **known)

    def _by_level(self, place: Place, known: Mapping[str, Any]) -> Moment:
        """The moment on a trajectory of unknown length: phases by noise level."""
        schedule, blocks = self.facts.schedule, self.facts.blocks
        if schedule.needs_steps:
            raise StepUnknownError("the schedule counts from the trajectory's length")
        if place.few_steps and schedule.few_step_defaults and self.facts.caches:
            raise StepUnknownError("it looks like a few-step trajectory, whose defaults differ")

        def at(step: int, level: float = place.level) -> Span | None:
            return self.variants.actual(schedule.at(step, level, blocks))

        def emits() -> frozenset[Span]:
            horizon = range(place.step + 1, place.step + 1 + self._reach())
            later = {at(step, level) for step in horizon for level in (place.level, 0.0)}
            return frozenset(span for span in later if span is not None)

        past = range(place.step, -1, -1)
        return Moment(
            planned=at(place.step),
            emits=emits,
            fresh_since=next((step for step in past if at(step) is None), 0),
            keeps=None,
            **known,
        )

    def note_refusal(self, arguments: Sequence[Any], entry: Entry) -> None:
        """Put a refused call into the report of its session, or of its implicit trajectory."""
        session = active_session()
        if session is not None:
            session.entries.append(session.located(entry))
            return
        tracker = tracker_of(self.owner_of(arguments))
        tracker.entries.append(replace(entry, trajectory=max(0, tracker.trajectory)))

    def _reach(self) -> int:
        """How many steps ahead a cached step may read a delta emitted now."""
        interval = getattr(self.facts.schedule, "interval", 1)
        return int(interval) * (self.facts.order + 1)

    def _rows(self, schedule: AnySchedule, steps: int, start: int = 0) -> Rows:
        """For every step of a trajectory, what a `Moment` says of the schedule."""
        # 1 and 1.0 are equal, but as a boundary one is a step and the other a fraction.
        key = (schedule, type(getattr(schedule, "boundary", None)), steps, start)
        rows = self._known.get(key)
        if rows is None:
            table = self.variants.realised(schedule.table(steps, self.facts.blocks, start))
            self.variants.prepare(table)  # now, at the first step, rather than in mid-run
            rows = tuple(_row(table, at, self.facts.order) for at in range(steps))
            if len(self._known) >= MANY_TABLES:
                self._known.clear()
            self._known[key] = rows
        return rows


def _row(table: Table, step: int, order: int) -> dict[str, Any]:
    return {
        "planned": table[step],
        "emits": partial(_same, read_after(table, step, order)),
        "fresh_since": max((at for at in range(step + 1) if table[at] is None), default=0),
        "keeps": frozenset(span for span in table[step + 1 :] if span is not None),
    }


def _same(spans: frozenset[Span]) -> frozenset[Span]:
    return spans


def find_moments(facts: Facts, variants: Repertoire) -> Moments:
    """The finder for one compiled model."""
    inputs = facts.inputs
    weights = [at for at, given in enumerate(inputs) if given.role is Role.WEIGHT]
    return Moments(
        facts=facts,
        variants=variants,
        reader=signal_reader(inputs),
        # All graphs compiled from one model share its weights, hence its trajectories.
        owner=weights[0] if weights else None,
    )


def tracker_of(owner: Any) -> TimestepTracker:
    """This thread's or task's tracker of the model that owns a weight; a new one at first."""
    caller = _caller()
    known = _TRACKERS.get()
    if known is None or known[0] is not caller:
        known = (caller, WeakIdKeyDictionary())
        _TRACKERS.set(known)
    trackers: Any = known[1]
    if owner not in trackers:
        trackers[owner] = TimestepTracker()
    tracker: TimestepTracker = trackers[owner]
    return tracker


def known_tracker(owners: Iterable[Any]) -> TimestepTracker | None:
    """The tracker here of the model that has one of these weights, if it was ever called here."""
    known = _TRACKERS.get()
    if known is None or known[0] is not _caller():
        return None
    return next((known[1][owner] for owner in owners if owner in known[1]), None)


def _caller() -> weakref.ref[Any]:
    """Who is calling: the task, or outside an event loop the thread.

    Not by number, which may be given again to another once they have ended. The same object has
    the same weak reference.
    """
    running = asyncio._get_running_loop() is not None
    task = asyncio.current_task() if running else None
    return weakref.ref(task if task is not None else threading.current_thread())
