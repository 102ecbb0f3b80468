"""Numbers of steps and their indices, checked."""

from __future__ import annotations

import operator
from collections.abc import Sized
from typing import Any

from deltapass.errors import StateError


def whole_step(index: Any) -> int:
    """A step's index, of any kind of whole number.

    Raises:
        StateError: If it is none.
    """
    try:
        if not isinstance(index, bool):
            return operator.index(index)
    except TypeError:
        pass
    raise StateError(f"step {index!r}", "A step is a whole number, counted from 0")


def step_count(steps: int | None, timesteps: Sized | None) -> int | None:
    """The number of steps, given as such or as the timesteps themselves; None if neither is.

    Raises:
        StateError: If it is no number of steps, or not that of the timesteps.
    """
    if steps is None:
        return None if timesteps is None else step_count(len(timesteps), timesteps)
    if isinstance(steps, bool) or not isinstance(steps, int) or steps < 1:
        raise StateError(f"a session of {steps!r} steps", "Give the number of steps, 1 or more")
    if timesteps is not None and len(timesteps) != steps:
        fact = f"a session of {steps} steps with {len(timesteps)} timesteps"
        raise StateError(fact, "Give one timestep a step, or timesteps alone")
    return steps
