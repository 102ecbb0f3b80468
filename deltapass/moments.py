"""Stage 7, first half: what a call is (step, branch) and what the schedule plans for it.

An explicit session says so itself. Otherwise the timestep input tells, by way of a tracker a
thread; see docs/guide.md for what that can and cannot know.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Hashable, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Final, final

from torch.utils.weak import WeakIdKeyDictionary

from deltapass.errors import StepUnknownError
from deltapass.graphs import Role
from deltapass.plan import Plan, read_after
from deltapass.report import Entry
from deltapass.schedule import AnySchedule, Span, Table
from deltapass.session import BranchState, Session, active_session
from deltapass.signals import SignalReader, Signals, signal_reader
from deltapass.tracker import Place, TimestepTracker
from deltapass.variants import Variants

# Implicit trajectories of this thread, by model: a new thread starts with none.
# With the thread's number, because a copied context takes its variables to another thread.
_TRACKERS: Final[ContextVar[tuple[int, WeakIdKeyDictionary] | None]] = ContextVar(
    "deltapass_trackers", default=None
)
MAX_CONDITIONING_CHANGES: Final = 3


@final
@dataclass(frozen=True, kw_only=True, slots=True)
class Moment:
    """What is known about one call before it runs.

    Attributes:
        step: Step on the trajectory, from 0.
        branch: Which call of the step.
        planned: The span to skip, or None for a refresh.
        emits: Gives the spans whose deltas later cached steps read, should this call refresh.
        fresh_since: The last planned refresh; deltas from before it are too old.
        keeps: Spans that later steps read; the deltas of others can go. None: not known.
        state: Deltas of this branch.
        doubt: Why the deltas in `state` were dropped before this call; usually empty.
        entries: Where to note what was done, if anybody reads it.
    """

    step: int
    branch: Hashable
    planned: Span | None
    emits: Callable[[], frozenset[Span]]
    fresh_since: int
    keeps: frozenset[Span] | None
    state: BranchState
    doubt: str = ""
    entries: list[Entry] | None = None


@final
@dataclass
class Moments:
    """Finds the moment of every call of one compiled model. Keeps nothing but looked-up tables."""

    plan: Plan
    variants: Variants
    reader: SignalReader | None
    owner: int | None
    _tables: dict[tuple[AnySchedule, int], Table] = field(default_factory=dict)

    def find(self, model: Any, arguments: Sequence[Any]) -> Moment:
        """The moment of a call.

        Args:
            model: Whose deltas they are: the compiled model, as a key of the states.
            arguments: Inputs of the call.

        Raises:
            StepUnknownError: If nothing says which step this is.
            NoStepError: If the active session has not been told its step.
            ScheduleError: If the schedule does not fit the session's trajectory.
        """
        session = active_session()
        if session is not None:
            return self._explicit(model, session)
        return self._implicit(model, arguments)

    def _explicit(self, model: Any, session: Session) -> Moment:
        step, branch = session.place(model)
        table = self._table(session.schedule or self.plan.schedule, session.steps)
        state = session.state(model, branch)
        return self._on_table(table, (step, branch), state, entries=session.entries)

    def _on_table(
        self,
        table: Table,
        place: tuple[int, Hashable],
        state: BranchState,
        *,
        doubt: str = "",
        entries: list[Entry] | None = None,
    ) -> Moment:
        step, branch = place
        return Moment(
            step=step,
            branch=branch,
            planned=table[step],
            emits=partial(read_after, table, step, self.plan.order),
            fresh_since=max((at for at in range(step + 1) if table[at] is None), default=0),
            keeps=frozenset(span for span in table[step + 1 :] if span is not None),
            state=state,
            doubt=doubt,
            entries=entries,
        )

    def _implicit(self, model: Any, arguments: Sequence[Any]) -> Moment:
        if self.reader is None:
            raise StepUnknownError("no single timestep is among the model's inputs")
        signals = self.reader.read(arguments)
        tracker = _tracker(arguments[self.owner] if self.owner is not None else model)
        place = tracker.locate(signals.timestep, signals.sample)
        if place.problem:
            raise StepUnknownError(place.problem)
        state = tracker.state(model, place.branch)
        doubt = _check_conditioning(state, signals)
        steps = self.plan.steps
        if steps is None:
            return self._by_level(place, state, doubt)
        if place.step >= steps:
            raise StepUnknownError(f"the trajectory is longer than the {steps} steps announced")
        table = self._table(self.plan.schedule, steps)
        return self._on_table(table, (place.step, place.branch), state, doubt=doubt)

    def _by_level(self, place: Place, state: BranchState, doubt: str) -> Moment:
        """The moment on a trajectory of unknown length: phases by noise level."""
        schedule, blocks = self.plan.schedule, self.plan.blocks
        if schedule.needs_steps:
            raise StepUnknownError("the schedule counts from the trajectory's length")
        if place.few_steps and schedule.few_step_defaults and self.plan.spans:
            raise StepUnknownError("it looks like a few-step trajectory, whose defaults differ")

        def at(step: int, level: float = place.level) -> Span | None:
            return self.variants.actual(schedule.at(step, level, blocks))

        def emits() -> frozenset[Span]:
            horizon = range(place.step + 1, place.step + 1 + self._reach())
            later = {at(step, level) for step in horizon for level in (place.level, 0.0)}
            return frozenset(span for span in later if span is not None)

        past = range(place.step, -1, -1)
        return Moment(
            step=place.step,
            branch=place.branch,
            planned=at(place.step),
            emits=emits,
            fresh_since=next((step for step in past if at(step) is None), 0),
            keeps=None,
            state=state,
            doubt=doubt,
        )

    def _reach(self) -> int:
        """How many steps ahead a cached step may read a delta emitted now."""
        interval = getattr(self.plan.schedule, "interval", 1)
        return int(interval) * (self.plan.order + 1)

    def _table(self, schedule: AnySchedule, steps: int) -> Table:
        key = (schedule, steps)
        if key not in self._tables:
            self._tables[key] = self.variants.realised(schedule.table(steps, self.plan.blocks))
        return self._tables[key]


def find_moments(plan: Plan, variants: Variants) -> Moments:
    """The finder for one compiled model."""
    inputs = plan.outline.captured.inputs
    weights = [at for at, given in enumerate(inputs) if given.role is Role.WEIGHT]
    return Moments(
        plan=plan,
        variants=variants,
        reader=signal_reader(inputs),
        # All graphs compiled from one model share its weights, hence its trajectories.
        owner=weights[0] if weights else None,
    )


def _tracker(owner: Any) -> TimestepTracker:
    """This thread's tracker of the model that owns a weight."""
    thread = threading.get_ident()
    known = _TRACKERS.get()
    if known is None or known[0] != thread:
        known = (thread, WeakIdKeyDictionary())
        _TRACKERS.set(known)
    trackers = known[1]
    if owner not in trackers:
        trackers[owner] = TimestepTracker()
    tracker: TimestepTracker = trackers[owner]
    return tracker


def _check_conditioning(state: BranchState, signals: Signals) -> str:
    """Forget the deltas of another prompt.

    Raises:
        StepUnknownError: If the conditioning changes at every step, so nothing can be cached.
    """
    known, state.conditioning = state.conditioning, signals.conditioning
    if known is None or known == signals.conditioning:
        state.changes = 0
        return ""
    state.clear()
    state.changes += 1
    if state.changes >= MAX_CONDITIONING_CHANGES:
        raise StepUnknownError("an input besides sample and timestep changes at every step")
    return "the conditioning changed"
