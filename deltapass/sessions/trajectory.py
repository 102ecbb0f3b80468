"""One trajectory: the steps told so far, and the deltas of every branch on every model.

A plain state machine, without locks or contexts: session.py adds those.
"""

from __future__ import annotations

import itertools
from collections.abc import Hashable, Iterator
from typing import Any, Final, NamedTuple, final

from deltapass.errors import StepUnknownError, TooManyBranchesError
from deltapass.sessions.context import Position
from deltapass.sessions.deltas import Doubt, Lane
from deltapass.sessions.owners import ByOwner
from deltapass.sessions.report import Cause

MAX_CALLS: Final = 16  # of one model under one announcement: more, and its deltas would pile up
MAX_BRANCHES: Final = 64  # of one model at two steps in a row
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
class _Model:
    """One model on the trajectory: its number there, and (branch, number of the call) -> lane."""

    __slots__ = ("lanes", "number")

    def __init__(self, number: int) -> None:
        self.number = number
        self.lanes: dict[tuple[Hashable, int], Lane] = {}

    def let_go(self, step: int) -> None:
        """Let go of deltas that no call can read from a step on."""
        for branch, lane in list(self.lanes.items()):
            if lane.placed < step - 1:  # it was left out: its next call refreshes
                if lane.histories:
                    lane.histories = {}
                if len(self.lanes) > MAX_BRANCHES // 2:  # names that come once, and never again
                    del self.lanes[branch]


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
        # By first weight. Counted by numbers: the id of one that is gone may be given again.
        numbers = itertools.count()
        self._models: ByOwner[_Model] = ByOwner(lambda: _Model(next(numbers)))

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
            self.let_go()
        position = self._told.get(branch) if again else None
        if position is None:
            position = Position(self.token, index, branch)
            if branch in self._told or len(self._told) < MAX_BRANCHES:
                self._told[branch] = position
        return position

    def let_go(self) -> None:
        """Let go of deltas that no call can read from the present step on."""
        if self.step is not None:
            for model in self._models.values():
                model.let_go(self.step)

    def place(self, position: Position, owner: Any) -> Place:
        """Where the next call of a model belongs; counts it.

        Raises:
            StepUnknownError: If it is one too many under its announcement.
            TooManyBranchesError: If its branch is one too many.

        A step told twice, with calls under both, may be a repetition or another branch. Which
        deltas belong to which is not known then, so those of that name are dropped, both now and
        when the next step is told.
        """
        self.placed = True
        model, calls = self._models.of(owner), position.calls
        nth = calls.get(model.number, 0)
        if nth >= MAX_CALLS:
            self._drop(position.branch, position.step)
            raise StepUnknownError(
                f"{nth} calls of one model under one step() or step of a sampler"
            )
        lane = self._lane(model, (position.branch, nth), position.step)
        key = model.number, position.branch
        used = self._used.setdefault(key, position)
        if used is not position or position.step != self.step:
            self._repeated.add(position.branch)
            self._drop(position.branch, position.step)
            self._used[key] = position
        calls[model.number] = nth + 1
        branch, step = (position.branch, nth), position.step
        return Place(self.number, step, branch, self.start or 0, self.before, lane)

    def take_back(self, position: Position, owner: Any) -> None:
        """Uncount a call that failed: telling its step again is no repetition, nor is a retry."""
        model = self._models.get(owner)
        if model is not None and position.calls.get(model.number):
            position.calls[model.number] -= 1
            if not position.calls[model.number]:
                self._used.pop((model.number, position.branch), None)

    def _lane(self, model: _Model, branch: tuple[Hashable, int], step: int) -> Lane:
        lane = model.lanes.get(branch)
        if lane is None:
            if len(model.lanes) >= MAX_BRANCHES:
                raise TooManyBranchesError(MAX_BRANCHES)
            late = Doubt(Cause.BRANCH, f"this branch is first called at step {step}")
            lane = model.lanes[branch] = Lane(self.origin if step == self.start else late)
        lane.placed = step
        return lane

    @property
    def lanes(self) -> Iterator[Lane]:
        """The lanes of all branches on all models."""
        for model in self._models.values():
            yield from list(model.lanes.values())

    def drop(self, doubt: Doubt) -> None:
        """Forget all deltas."""
        for lane in self.lanes:
            lane.drop(doubt)

    def _drop(self, name: Hashable, step: int | None) -> None:
        """Forget the deltas of all branches of one name, made at a step that was told twice."""
        doubt = Doubt(Cause.REPEATED, f"step {step} was told twice")
        for model in self._models.values():
            for branch, lane in model.lanes.items():
                if branch[0] == name:
                    lane.drop(doubt)
