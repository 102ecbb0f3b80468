"""Finding the step without being told: from the model's timestep and its noisy sample.

A call is the next step if its timestep moves on in the trajectory's direction and its sample
follows from the last one (`Continuity`); the next branch if both are the same as before; anything
else begins a new trajectory. Calls are never counted blindly, and until the timesteps look like
those of one sampler (`pattern`), nothing is cached.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, NamedTuple, final

from deltapass.schedule.rules import FEW_STEPS
from deltapass.selector.continuity import Continuity
from deltapass.selector.pattern import GAPS, Length, are_regular, length_of
from deltapass.sessions.deltas import Doubt, Lane
from deltapass.sessions.log import Log
from deltapass.sessions.report import Cause
from deltapass.sessions.trajectory import NEW, Place

UNIT: Final = 1.0  # timesteps from 0 to 1 are noise levels
TRAINING_STEPS: Final = 1000.0  # timesteps from 0 to 1000 are a thousand times the level
SIGMAS: Final = 200.0  # first timesteps from UNIT to this may be sigmas, of no known level
ROUNDED: Final = 1e-3  # of UNIT
MAX_BRANCHES: Final = 8
LEAP: Final = 4.0  # a gap between timesteps, over the one before it, that no sampler leaves
LEAST_LEAP: Final = 0.08  # of the scale: smaller gaps are none, whatever went before


@final
class Located(NamedTuple):
    """Where on its trajectory a call is, as far as its timestep and sample tell.

    Attributes:
        step: Steps since the trajectory's start.
        level: Noise level from 1.0 (pure noise) to 0.0; None if the timesteps' scale is unknown.
        branch: Order of the call within its step.
        sure: The steps so far are those of one sampler.
        length: What is known of the number of steps.
        problem: Why the place is not certain; empty when it is.
    """

    step: int
    level: float | None
    branch: int
    sure: bool
    length: Length
    problem: str = ""


@final
class TimestepTracker:
    """Follows the trajectories of one caller through one model.

    Attributes:
        trajectory: Number of the present trajectory, from 0; -1 before the first.
        entries: Its calls.
        continuity: Its last sample.
        starts: Trajectories in a row that were never sure, the present one among them.
    """

    def __init__(self) -> None:
        self.trajectory = -1
        self.entries = Log()
        self.continuity = Continuity()
        self.starts = 0
        self._value = 0.0
        self._scale: float | None = None
        self._sigmas = False
        self._rising: bool | None = None
        self._step = self._branch = 0
        self._first: list[float] = []  # timesteps of the first steps
        self._gaps: list[float] = []  # the last ones that are not 0
        self._sure, self._length = False, Length.UNKNOWN
        self._lanes: dict[int, Lane] = {}

    def locate(self, value: float, products: Sequence[float], grain: float = 0.0) -> Located:
        """Place a call whose sample `continuity` has just looked at.

        Args:
            value: Timestep as the model is given it: 0..1000, 0..1 or sigmas, falling or rising.
            products: The `numbers` of `continuity`, read.
            grain: How much timesteps are rounded, of their size.
        """
        if self._first and value == self._value and self.continuity.same:
            self._branch += 1
        elif self._first and self._follows(value, products):
            self._next_step(value, grain)
        else:
            self._restart(value)
        return Located(
            self._step, self._level(value), self._branch, self._sure, self._length, self._problem()
        )

    def lane(self, branch: int) -> Lane:
        """The lane of one branch of the present trajectory; empty at first."""
        lane = self._lanes.get(branch)
        if lane is None:
            late = Doubt(Cause.BRANCH, f"this branch is first called at step {self._step}")
            lane = self._lanes[branch] = Lane(NEW if self._step == 0 else late)
        return lane

    def place(self, found: Located) -> Place:
        """The place of a call just located."""
        step, branch = found.step, found.branch
        before = step - 1 if step else None
        return Place(self.trajectory, step, (None, branch), 0, before, self.lane(branch))

    def _problem(self) -> str:
        if self._branch < MAX_BRANCHES:
            return ""
        # A loop on fixed inputs, as in a benchmark: keep nothing for it.
        self._lanes.clear()
        return f"{MAX_BRANCHES} calls or more share one timestep and sample"

    def _level(self, value: float) -> float | None:
        if self._scale is None:
            return None
        level = value / self._scale
        return 1.0 - level if self._rising else level

    def _follows(self, value: float, products: Sequence[float]) -> bool:
        """Whether a call can be the next step: its direction, its gap and its sample."""
        gap = value - self._value
        if gap and self._rising is not None and (gap > 0) is not self._rising:
            return False
        if self._gaps and abs(gap) > LEAP * self._gaps[-1] and abs(gap) > LEAST_LEAP * self._range:
            return False
        level = None if gap > 0 and self._rising is None else self._level(value)
        return self.continuity.follows(products, level)

    @property
    def _range(self) -> float:
        return self._scale if self._scale is not None else max(map(abs, self._first))

    def _restart(self, value: float) -> None:
        self._lanes.clear()
        self.entries.clear()
        self.continuity.accept()
        self.trajectory += 1
        self.starts += 1
        self._value, self._scale, self._rising = value, self._scale_of(value), None
        self._step = self._branch = 0
        self._first, self._gaps = [value], []
        self._sure, self._length = False, Length.UNKNOWN

    def _scale_of(self, first: float) -> float | None:
        """The scale of a trajectory by its first timestep, and by what was seen before."""
        if first > SIGMAS:
            return TRAINING_STEPS
        if self._scale == TRAINING_STEPS and first > UNIT:
            return TRAINING_STEPS
        return UNIT if 0.0 <= first <= UNIT + ROUNDED and not self._sigmas else None

    def _next_step(self, value: float, grain: float) -> None:
        gap = value - self._value
        if gap:
            self._rising = gap > 0
            self._gaps = [*self._gaps[1 - GAPS :], abs(gap)]
        if self._scale == UNIT and value < 0.0:  # logarithms of sigmas
            self._sigmas, self._scale = True, None
        elif self._rising and self._scale != TRAINING_STEPS and value > UNIT + ROUNDED:
            self._scale = TRAINING_STEPS if value > SIGMAS else None
        self.continuity.accept()
        self._value, self._step, self._branch = value, self._step + 1, 0
        if not (self._sure and self._length is Length.MANY):
            self._learn(value, grain)

    def _learn(self, value: float, grain: float) -> None:
        """Is it a sampler, and has it many steps? What was learned once is not asked again."""
        if len(self._first) <= FEW_STEPS:
            self._first.append(value)
        whole = self._range == TRAINING_STEPS and all(map(float.is_integer, self._first))
        rounded = max(grain * self._range, 0.5 if whole else 0.0)
        if not self._sure and are_regular(self._gaps, rounded):
            self._sure, self.starts = True, 0
        if self._length is not Length.MANY:
            levels = [value / self._range for value in self._first]
            levels = [1.0 - level for level in levels] if self._rising else levels
            self._length = length_of(levels, rounded / self._range)
