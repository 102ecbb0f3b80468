"""A schedule as users give it: an object, a name or a file."""

from __future__ import annotations

import os
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Final, TypeGuard

from deltapass.errors import ContradictoryOptionsError, OptionError
from deltapass.schedule.explicit import AnySchedule, ExplicitSchedule
from deltapass.schedule.files import load_schedule
from deltapass.schedule.presets import SCHEDULES, named_schedule
from deltapass.schedule.rules import Schedule

GivenSchedule = AnySchedule | str | os.PathLike[str]
SCHEDULE_FORM: Final = (
    f"one of {', '.join(SCHEDULES)}, a schedule object, or the path of a .json or .toml file"
)
NO_FIELDS: Final[Mapping[str, Any]] = MappingProxyType({})


def given_schedule(value: object, fields: Mapping[str, Any] = NO_FIELDS) -> AnySchedule:
    """The schedule that a user means.

    Args:
        value: A schedule object, a name in SCHEDULES, or the path of a file.
        fields: Fields of a named schedule that are not its defaults.

    Raises:
        ScheduleError: If the schedule's name, file or fields cannot be used.
        ContradictoryOptionsError: If an object, a file or 'none' comes with fields.
        OptionError: If it is nothing of these.
    """
    if isinstance(value, Schedule | ExplicitSchedule):
        _refuse_fields(fields, "the schedule object already sets it")
        return value
    if _is_path(value):
        _refuse_fields(fields, f"the file {os.fspath(value)} already sets it")
        return load_schedule(value)
    if not isinstance(value, str):
        raise OptionError("schedule", value, SCHEDULE_FORM)
    if value == "none":
        _refuse_fields(fields, "schedule 'none' never caches")
    return named_schedule(value, **fields)


def schedule_or_none(value: object) -> AnySchedule | None:
    """As `given_schedule`; None stands for the compiled model's own schedule.

    Raises:
        ScheduleError, OptionError: As `given_schedule`.
    """
    return None if value is None else given_schedule(value)


def _is_path(value: object) -> TypeGuard[str | os.PathLike[str]]:
    named = isinstance(value, str) and value.endswith((".json", ".toml"))
    return named or isinstance(value, os.PathLike)


def _refuse_fields(fields: Mapping[str, Any], why: str) -> None:
    for name in fields:
        raise ContradictoryOptionsError("schedule", name, why)
