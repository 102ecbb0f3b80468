"""What schedules refuse in the same words."""

from __future__ import annotations

import math
from collections.abc import Sequence

from deltapass.errors import ScheduleError, did_you_mean


def check_count(name: str, value: object, least: int) -> None:
    """Raise ScheduleError unless `value` is a whole number from `least` on."""
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ScheduleError(f"{name} is {value!r}", f"It must be a whole number from {least} on")


def unknown_name(kind: str, name: object, valid: Sequence[str]) -> ScheduleError:
    """The error for a name that is none of `valid`, with the nearest of them."""
    known = f"Known are: {', '.join(valid)}"
    return ScheduleError(f"unknown {kind} {name!r}", did_you_mean(name, valid) + known)


def unknown_length(why: str) -> ScheduleError:
    """The error for a schedule that cannot be followed without the number of steps."""
    return ScheduleError(
        f"this schedule needs the number of steps: {why}",
        "Give options={'steps': n} or open a session with steps=n",
    )


def check_part(name: str, value: object) -> None:
    """Raise ScheduleError unless it is None, a fraction or a whole number."""
    if isinstance(value, float):
        if not 0.0 <= value <= 1.0:
            raise ScheduleError(f"{name} is {value!r}", "A fraction is 0.0 to 1.0")
    elif value is not None:
        check_count(name, value, 0)


def placed(part: int | float, whole: int) -> int:
    """A whole number as it is, a fraction as that part of the whole.

    Rounded half up; Python's round would send 4.5 to 4 and 5.5 to 6.
    """
    return part if isinstance(part, int) else math.floor(whole * part + 0.5)
