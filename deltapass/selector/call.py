"""What a call is (step, branch) and what the schedule plans for it.

An explicit session says so itself. Otherwise the timestep input tells, by way of a tracker a
thread; see docs/sessions.md for what that can and cannot know.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, NamedTuple, final

from deltapass.errors import NoTimestepError, StepUnknownError
from deltapass.graph.program import Role, data_names
from deltapass.schedule.rules import AnySchedule
from deltapass.selector.model import ModelInfo, Repertoire
from deltapass.selector.rows import Rows
from deltapass.selector.signals import SignalReader, signal_reader
from deltapass.selector.trackers import tracker_of
from deltapass.sessions.deltas import Lane, LaneTable, Row
from deltapass.sessions.log import Log
from deltapass.sessions.report import Entry
from deltapass.sessions.session import Session, active_session
from deltapass.sessions.trajectory import Place


@final
class PlannedCall(NamedTuple):
    """What is known about one call before it runs.

    Attributes:
        place: Trajectory, step and branch.
        row: What the schedule plans for the step.
        lane: Deltas of this branch.
        log: Where to note what was done.
        certain: Values must be read where an object may have changed unseen.
    """

    place: Place
    row: Row
    lane: Lane
    log: Log
    certain: bool


@final
class CallFinder:
    """Finds place and plan of every call of one compiled model.

    `starts` counts the calls without a session, one after the other, that each looked like the
    first step of a trajectory.
    """

    def __init__(self, model: ModelInfo, variants: Repertoire) -> None:
        self.model = model
        self.reader: SignalReader | None = signal_reader(model.inputs)
        self.starts = 0
        self._rows = Rows(model, variants)
        self._token = object()  # stands for this finder in lanes, which must not hold its graph
        weights = [at for at, given in enumerate(model.inputs) if given.role is Role.WEIGHT]
        self._first_weight = weights[0] if weights else None

    def find(self, arguments: Sequence[Any]) -> PlannedCall:
        """Place and plan of a call with these inputs.

        Raises:
            StepUnknownError: If nothing says which step this is.
            NoStepError: If the active session has not been told its step.
            ScheduleError: If the schedule does not fit the session's trajectory.
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
        owner = self.owner_of(arguments)
        place = session.place(owner)
        try:
            schedule = session.schedule or self.model.schedule
            rows = self._table(place.lane, schedule, session.steps or 1, place.start)
        except BaseException:  # a variant could not be made: this call does not count
            session.take_back(owner)
            raise
        return PlannedCall(place, rows[place.step], place.lane, session.entries, False)

    def _by_timestep(self, arguments: Sequence[Any]) -> PlannedCall:
        if self.reader is None:
            raise NoTimestepError(data_names(self.model.inputs))
        signals = self.reader.read(arguments)
        tracker = tracker_of(self.owner_of(arguments))
        found = tracker.locate(signals.timestep, signals.sample)
        self.starts = 0 if found.step else self.starts + 1
        if found.problem:
            raise StepUnknownError(found.problem)
        place, steps = tracker.place(found), self.model.steps
        if steps is None:
            row = self._rows.at_level(found.step, found.level, few_steps=found.few_steps)
        elif found.step < steps:
            row = self._table(place.lane, self.model.schedule, steps, 0)[found.step]
        else:
            raise StepUnknownError(f"the trajectory is longer than the {steps} steps announced")
        return PlannedCall(place, row, place.lane, tracker.entries, True)

    def _table(self, lane: Lane, schedule: AnySchedule, steps: int, start: int) -> tuple[Row, ...]:
        """The rows of a lane's trajectory, which begins at `start`; found once."""
        known = lane.table
        if (
            known is None
            or known.model is not self._token
            or known.schedule is not schedule
            or known.steps != steps
        ):
            rows = self._rows.of(schedule, steps, start)
            known = lane.table = LaneTable(self._token, schedule, steps, rows)
        return known.rows

    def note_refusal(self, arguments: Sequence[Any], entry: Entry) -> None:
        """Put a refused call into the report of its session, or of its implicit trajectory."""
        session = active_session()
        if session is not None:
            session.entries.note_entry(session.located(entry))
            return
        tracker = tracker_of(self.owner_of(arguments))
        tracker.entries.note_entry(replace(entry, trajectory=max(0, tracker.trajectory)))
