"""What a call is (step, branch) and what the schedule plans for it.

An explicit session says so itself. Otherwise the timestep input tells, by way of a tracker a
thread; see docs/sessions.md for what that can and cannot know.
"""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Final, NamedTuple, final

from deltapass.errors import LoweringError, NoTimestepError, StepUnknownError
from deltapass.graph.program import Input, Role, data_names
from deltapass.schedule.explicit import AnySchedule, ExplicitSchedule
from deltapass.selector.continuity import Continuity
from deltapass.selector.model import ModelInfo, Repertoire
from deltapass.selector.observer import Observer
from deltapass.selector.pattern import Length
from deltapass.selector.rows import Rows
from deltapass.selector.signals import SignalReader, signal_reader
from deltapass.selector.timestep import Located, TimestepTracker
from deltapass.selector.trackers import tracker_of
from deltapass.selector.uses import Uses
from deltapass.sessions.deltas import Lane, LaneTable, Row
from deltapass.sessions.log import Log
from deltapass.sessions.report import Entry
from deltapass.sessions.session import Session, active_session
from deltapass.sessions.trajectory import Place

MANY_STARTS: Final = 16  # trajectories in a row of which no step could be cached
WHY: Final = (
    "requests that take turns, a sampler that draws its noise anew at every step, "
    "random timesteps, very few steps, or a thread or task for every call"
)
NO_LEVEL: Final = (
    "timesteps that are neither 0 to 1 nor 0 to 1000 tell no noise level, which places the boundary"
)
UNKNOWN: Final = Row(planned=None, emits=(), fresh_since=0, keeps={})
FEW: Final = "it looks like a few-step trajectory, whose defaults differ"


@final
class PlannedCall(NamedTuple):
    """What is known about one call before it runs.

    Attributes:
        place: Trajectory, step and branch.
        row: What the schedule plans for the step.
        lane: Deltas of this branch.
        log: Where to note what was done.
        certain: Values must be read where an object may have changed unseen.
        sure: Whether what is planned may be done; else the call refreshes.
        refusal: Why nothing will be cached, where that must be said.
        last: What takes note of the model's prediction, without a session.
        observer: Who looks on, for a fit.
    """

    place: Place
    row: Row
    lane: Lane
    log: Log
    certain: bool
    sure: bool = True
    refusal: StepUnknownError | None = None
    last: Continuity | None = None
    observer: Observer | None = None


def _owner_at(inputs: Sequence[Input]) -> int | None:
    """Position of the first weight, a plain one if there is: torch moves no wrapper weakly held."""
    weights = [(at, given.spec) for at, given in enumerate(inputs) if given.role is Role.WEIGHT]
    plain = (at for at, spec in weights if spec is None or spec.wrapped is None)
    return next(plain, weights[0][0] if weights else None)


@final
class CallFinder:
    """Finds place and plan of every call of one compiled model."""

    def __init__(self, model: ModelInfo, variants: Repertoire) -> None:
        self.model = model
        self.reader: SignalReader | None = signal_reader(model.inputs)
        by_length = model.schedule.few_step_defaults and model.caches
        self._by_length = by_length and model.steps is None
        self._bounded = model.schedule.has_boundary and model.caches
        # The tracker made last; how many in a row were gone when the next one was made.
        self._newest: weakref.ref[TimestepTracker] | None = None
        self._gone = 0
        self._rows, self._uses = Rows(model, variants), Uses(model)
        self._token = object()  # stands for this finder in lanes, which must not hold its graph
        self._first_weight = _owner_at(model.inputs)

    def find(self, arguments: Sequence[Any]) -> PlannedCall:
        """Place and plan of a call with these inputs.

        Raises:
            StepUnknownError: If nothing says which step this is.
            NoStepError: If the active session has not been told its step.
            ScheduleError: If the schedule does not fit the session's trajectory.
            LoweringError: If a variant cannot be lowered that the session's schedule needs.
        """
        session = active_session()
        if session is not None:
            return self._in_session(session, arguments)
        return self._by_timestep(arguments)

    def owner_of(self, arguments: Sequence[Any]) -> Any:
        """What stands for the model: its first weight, which all its graphs share."""
        if self.model.owner is not None:
            return self.model.owner()  # alive: it is being called
        return self if self._first_weight is None else arguments[self._first_weight]

    def _in_session(self, session: Session, arguments: Sequence[Any]) -> PlannedCall:
        owner, observer = self.owner_of(arguments), session.observer
        place = session.place(owner)
        try:
            if observer is not None:
                observer.met(self.model, session)
            if place.lane.unlowered is not None:
                raise place.lane.unlowered
            schedule = session.schedule or self.model.schedule
            rows = self._table(place, schedule, session.steps or 1, session)
        except BaseException as error:  # a variant could not be made: this call does not count
            session.take_back(owner)
            if isinstance(error, LoweringError):
                place.lane.unlowered = error
            raise
        row = rows[place.step]
        return PlannedCall(
            place, row, place.lane, session.entries, certain=False, observer=observer
        )

    def _by_timestep(self, arguments: Sequence[Any]) -> PlannedCall:
        if self.reader is None:
            raise NoTimestepError(data_names(self.model.inputs))
        tracker = tracker_of(self.owner_of(arguments))
        value, products = self.reader.read(arguments, tracker.continuity)
        found = tracker.locate(value, products, self.reader.grain)
        if found.problem:
            raise StepUnknownError(found.problem)
        place = tracker.place(found)
        row, refusal, sure = self._plan(place, found)
        if found.step:
            self._gone = 0
        elif not found.branch:
            refusal = refusal or self._started(tracker)
        last = tracker.continuity
        return PlannedCall(place, row, place.lane, tracker.entries, True, sure, refusal, last)

    def _plan(self, place: Place, found: Located) -> tuple[Row, StepUnknownError | None, bool]:
        """The row of a call, why it is refused if it is, and whether it may be followed."""
        steps = self.model.steps
        if steps is not None:
            if found.step >= steps:
                raise StepUnknownError(f"the trajectory is longer than the {steps} steps announced")
            row = self._table(place, self.model.schedule, steps)[found.step]
            return row, None, found.sure
        if found.level is None and self._bounded:
            return UNKNOWN, StepUnknownError(NO_LEVEL) if found.sure else None, False
        row = self._rows.at_level(found.step, found.level or 0.0)
        if not self._by_length or found.length is Length.MANY:
            return row, None, found.sure
        few = found.length is Length.FEW and row.planned is not None
        return row, StepUnknownError(FEW) if few else None, False

    def _started(self, tracker: TimestepTracker) -> StepUnknownError | None:
        """Note the start of a trajectory; why nothing is ever cached, if it looks that way."""
        if tracker.trajectory == 0:  # a thread or task that calls the model for the first time
            before = self._newest() if self._newest is not None else tracker
            self._gone = self._gone + 1 if before is None else 0
            self._newest = weakref.ref(tracker)
        if tracker.starts < MANY_STARTS and self._gone < MANY_STARTS:
            return None
        return StepUnknownError(
            f"none of the last {MANY_STARTS} trajectories had four steps: {WHY}"
        )

    def _table(
        self, place: Place, schedule: AnySchedule, steps: int, session: Session | None = None
    ) -> tuple[Row, ...]:
        """The rows of a lane's trajectory; found once."""
        lane = place.lane
        known = lane.table
        if (
            known is None
            or known.model is not self._token
            or known.schedule is not schedule
            or known.steps != steps
        ):
            rows = self._rows.of(schedule, steps, place.start, place.branch)
            if isinstance(schedule, ExplicitSchedule) and schedule.made_for is not None:
                self._uses.check(schedule.made_for, session)
            known = lane.table = LaneTable(self._token, schedule, steps, rows)
        return known.rows

    def note(self, arguments: Sequence[Any], results: Sequence[Any], last: Continuity) -> None:
        """Take note of the prediction of a call without a session."""
        if self.reader is not None:
            self.reader.note(arguments, results, last)

    def note_refusal(self, arguments: Sequence[Any], entry: Entry) -> None:
        """Put a refused call into the report of its session, or of its implicit trajectory."""
        session = active_session()
        if session is not None:
            session.entries.note_entry(session.located(entry))
            return
        tracker = tracker_of(self.owner_of(arguments))
        tracker.entries.note_entry(replace(entry, trajectory=max(0, tracker.trajectory)))
