"""One trajectory: the steps told so far, and the deltas of every branch on every model.

A plain state machine, without locks or contexts: session.py adds those.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator
from typing import Any, Final, NamedTuple, final

from deltapass.errors import StepUnknownError
from deltapass.sessions.context import Position
from deltapass.sessions.deltas import Doubt, Lane
from deltapass.sessions.owners import ByOwner
from deltapass.sessions.report import Cause

MAX_CALLS: Final = 16  # of one model at one step: more, and its deltas would pile up
NEW = Doubt(Cause.NEW_TRAJECTORY, "a new trajectory")


@final
class Place(NamedTuple):
    """Where a call belongs.

    Attributes:
        trajectory: Which trajectory of its session or thread, from 0.
        step: Step on the trajectory, from 0.
        branch: Name of the branch, and the number of the call under that name.
        start: First step of the trajectory.
        before: The step told before this one, whichever branch it was for; None at the first.
        lane: The branch's deltas.
    """

    trajectory: int
    step: int
    branch: Hashable
    start: int
    before: int | None
    lane: Lane


@final
class Trajectory:
    """What is known of one trajectory.

    Attributes:
        number: Which trajectory of its session, from 0.
        origin: Why it began: what the first call of every branch says.
        start: The first step told; image-to-image begins half-way.
        step: The step told last.
        before: The step told before that one.
        placed: Whether any model was called.
        told: How many steps were told.
        token: Stands for the trajectory in its positions.
    """

    def __init__(self, number: int, origin: Doubt = NEW) -> None:
        self.number, self.origin = number, origin
        self.start: int | None = None
        self.step: int | None = None
        self.before: int | None = None
        self.placed = False
        self.told = 0
        self.token = object()
        # Of the present step: the positions told, and under which of them each model was called.
        self._told: dict[Hashable, Position] = {}
        self._used: dict[tuple[int, Hashable], Position] = {}
        self._repeated: set[Hashable] = set()
        # Model, by its first weight -> (branch, number of the call) -> lane.
        self._lanes: ByOwner[dict[tuple[Hashable, int], Lane]] = ByOwner(dict)

    def announce(self, index: int, branch: Hashable, *, again: bool = False) -> Position:
        """Take note of a step; it must not lie below the last one.

        With `again`, a step told before goes on where it was: its calls are further branches.
        """
        if self.start is None:
            self.start = index
        if index != self.step:
            for name in self._repeated:
                self._drop(name, self.step)
            self._repeated.clear()
            self._told.clear()
            self._used.clear()
            self.before, self.step = self.step, index
            self.told += 1
        if not again or branch not in self._told:
            self._told[branch] = Position(self.token, index, branch)
        return self._told[branch]

    def place(self, position: Position, owner: Any) -> Place:
        """Where the next call of a model belongs; counts it.

        A step told twice, with calls under both, may be a repetition or another branch. Which
        deltas belong to which is not known then, so those of that name are dropped, both now and
        when the next step is told.
        """
        self.placed = True
        model, calls = id(owner), position.calls
        used = self._used.setdefault((model, position.branch), position)
        if used is not position or position.step != self.step:
            self._repeated.add(position.branch)
            self._drop(position.branch, position.step)
            self._used[model, position.branch] = position
        nth = calls.get(model, 0)
        if nth >= MAX_CALLS:
            self._drop(position.branch, position.step)
            raise StepUnknownError(
                f"{nth} calls of one model under one step() or step of a sampler"
            )
        calls[model] = nth + 1
        branch, step = (position.branch, nth), position.step
        lane = self._lane(owner, branch, step)
        return Place(self.number, step, branch, self.start or 0, self.before, lane)

    def take_back(self, position: Position, owner: Any) -> None:
        """Uncount a call that failed: telling its step again is no repetition, nor is a retry."""
        if position.calls.get(id(owner)):
            position.calls[id(owner)] -= 1
            if not position.calls[id(owner)]:
                self._used.pop((id(owner), position.branch), None)

    def _lane(self, owner: Any, branch: tuple[Hashable, int], step: int) -> Lane:
        lanes = self._lanes.of(owner)
        lane = lanes.get(branch)
        if lane is None:
            late = Doubt(Cause.BRANCH, f"this branch is first called at step {step}")
            lane = lanes[branch] = Lane(self.origin if step == self.start else late)
        return lane

    @property
    def lanes(self) -> Iterator[Lane]:
        """The lanes of all branches on all models."""
        for lanes in self._lanes.values():
            yield from list(lanes.values())

    def drop(self, doubt: Doubt) -> None:
        """Forget all deltas."""
        for lane in self.lanes:
            lane.drop(doubt)

    def _drop(self, name: Hashable, step: int | None) -> None:
        """Forget the deltas of all branches of one name, made at a step that was told twice."""
        doubt = Doubt(Cause.REPEATED, f"step {step} was told twice")
        for lanes in self._lanes.values():
            for branch, lane in lanes.items():
                if branch[0] == name:
                    lane.drop(doubt)
