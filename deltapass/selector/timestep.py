"""Finding the step without being told: from the value of the model's timestep input.

The noise level moves one way along a trajectory. A jump back starts a new one; the same value
again is the next branch of the step. Calls are never counted blindly: what cannot be told apart
is reported as ambiguous, and then nothing is cached.
"""

from __future__ import annotations

from typing import Final, NamedTuple, final

from deltapass.sessions.deltas import Doubt, Lane
from deltapass.sessions.log import Log
from deltapass.sessions.report import Cause
from deltapass.sessions.trajectory import NEW, Place

UNIT_SCALE: Final = 1.5  # first values up to this are read as 0..1, larger ones as 0..1000
TRAINING_STEPS: Final = 1000.0
MAX_BRANCHES: Final = 8
LEAP: Final = 4.0  # a gap between timesteps, over the one before it, that no sampler leaves
FEW_STEP_GAP: Final = 0.08  # a first step this large means about a dozen steps or fewer


@final
class Located(NamedTuple):
    """Where on its trajectory a call is, as far as its timestep tells.

    Attributes:
        step: Steps since the trajectory's start.
        level: Noise level from 1.0 (pure noise) to 0.0.
        branch: Order of the call within its step.
        few_steps: The first step was so large that this is a few-step trajectory.
        problem: Why the place is not certain; empty when it is.
    """

    step: int
    level: float
    branch: int
    few_steps: bool
    problem: str = ""


@final
class TimestepTracker:
    """Follows the trajectories of one caller through one model.

    `entries` holds the calls of the present trajectory, whose number is `trajectory`.
    """

    def __init__(self) -> None:
        self.trajectory = -1
        self.entries = Log()
        self._value: float | None = None
        self._sample: tuple[float, ...] = ()
        self._scale = 1.0
        self._rising: bool | None = None
        self._jumps = 0
        self._step = self._branch = 0
        self._few_steps = False
        self._problem = ""
        self._gap = 0.0
        self._lanes: dict[int, Lane] = {}

    def locate(self, value: float, sample: tuple[float, ...]) -> Located:
        """Place a call by its timestep.

        Args:
            value: Timestep as the model is given it: 0..1000 or 0..1, falling or rising.
            sample: A few numbers of the noisy sample: calls of one step share the sample.
        """
        if self._value is None:
            self._restart(value, sample)
        elif value == self._value:
            self._same_step(value, sample)
        elif self._goes_on(value) and self._is_leap(value):
            self._restart(value, sample)
        elif self._goes_on(value):
            self._next_step(value, sample)
        else:
            self._jump_back(value, sample)
        return Located(self._step, self._level(value), self._branch, self._few_steps, self._problem)

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

    def _level(self, value: float) -> float:
        level = value / self._scale
        return 1.0 - level if self._rising else level

    def _goes_on(self, value: float) -> bool:
        before = self._value if self._value is not None else value
        return value > before if self._rising else value < before

    def _is_leap(self, value: float) -> bool:
        """Whether this looks like another trajectory that starts half-way, after an aborted one."""
        gap = abs(value - self._value) if self._value is not None else 0.0
        return self._step > 0 and gap > LEAP * self._gap and gap / self._scale > FEW_STEP_GAP

    def _restart(self, value: float, sample: tuple[float, ...]) -> None:
        self._lanes.clear()
        self.entries.clear()
        self.trajectory += 1
        self._scale = TRAINING_STEPS if value > UNIT_SCALE else 1.0
        self._value, self._sample = value, sample
        self._step = self._branch = 0
        self._few_steps, self._problem = False, ""

    def _same_step(self, value: float, sample: tuple[float, ...]) -> None:
        if sample == self._sample:
            self._branch += 1
            if self._branch >= MAX_BRANCHES:
                # A loop on fixed inputs, as in a benchmark: keep nothing for it.
                self._lanes.clear()
                self._problem = f"{MAX_BRANCHES} calls or more share one timestep and sample"
            return
        # Another trajectory at the same timestep, or a branch with a sample of its own.
        self._restart(value, sample)
        self._problem = "calls with different samples share one timestep"

    def _next_step(self, value: float, sample: tuple[float, ...]) -> None:
        if self._step == 0 and self._value is not None:
            self._few_steps = abs(value - self._value) / self._scale > FEW_STEP_GAP
        if self._value is not None:
            self._gap = abs(value - self._value)
        self._value, self._sample = value, sample
        self._step, self._branch, self._jumps = self._step + 1, 0, 0

    def _jump_back(self, value: float, sample: tuple[float, ...]) -> None:
        """A new trajectory; two in a row with no step between mean the other direction."""
        self._jumps += 1
        if self._jumps > 1:
            self._rising, self._jumps = not self._rising, 0
        scale = self._scale
        self._restart(value, sample)
        if self._rising:  # near 0 at the start, a value says nothing about its scale
            self._scale = max(scale, self._scale)
