"""Methods of ours: schedules by rule, for a speed-up, row by row, or from a file."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

from deltapass.bench.methods.method import Context, Method
from deltapass.bench.methods.naming import label_of, name_of
from deltapass.bench.suite import MethodSpec
from deltapass.errors import BenchError, ScheduleFileError, did_you_mean
from deltapass.schedule.budget import Budget
from deltapass.schedule.explicit import AnySchedule, ExplicitSchedule
from deltapass.schedule.files import load_schedule
from deltapass.schedule.presets import FIELD_NAMES, never, preset_named, tgate
from deltapass.schedule.rules import Schedule, Span

SCHEDULES: Final = "schedules"  # folder of a model's tuned schedules, beside its weights
SPEEDUP: Final = "speedup"
WITH_SPEEDUP: Final = (SPEEDUP, "boundary", "predictor", "outline", "detail")
DEEP: Final[Mapping[str, Any]] = MappingProxyType({"outline": "deep", "detail": "deep"})


def by_rule(label: str, fixed: Mapping[str, Any] = MappingProxyType({})) -> Any:
    """A method whose settings are fields of a schedule, or a speed-up with a few of them.

    With `speedup` s the schedule is the one of Eq. 6 and 7 for a budget of 1/s of the plain MACs.
    """
    return functools.partial(_ruled, label, fixed)


def _ruled(label: str, fixed: Mapping[str, Any], spec: MethodSpec, context: Context) -> Method:
    speedup = spec.settings.get(SPEEDUP)
    allowed = FIELD_NAMES if speedup is None else WITH_SPEEDUP
    fields = {**fixed, **checked(spec, (*allowed, SPEEDUP))}
    fields.pop(SPEEDUP, None)
    steps = spec.steps or context.steps
    if speedup is None:
        return _cached(spec, steps, label, Schedule(**fields))
    return _cached(spec, steps, label, for_speedup(speedup, fields, steps, context))


def for_speedup(
    speedup: float, fields: Mapping[str, Any], steps: int, context: Context
) -> Schedule:
    """The schedule whose trajectory costs at most 1/speedup of the plain one.

    Raises:
        BenchError: If it is no speed-up, or the model's costs are not known.
        ScheduleError: If no schedule of the kind is as cheap.

    Source:
        Eq. 6 and 7, in MACs of the real graph.
    """
    number = isinstance(speedup, int | float) and not isinstance(speedup, bool)
    if not number or speedup < 1:
        raise BenchError(f"speedup is {speedup!r}", "Give a number from 1 on, such as 1.6")
    if context.step_macs is None or context.blocks is None:
        raise BenchError(
            f"{context.model} has no stack of blocks, so a speed-up chooses no schedule",
            "Give the method's interval and blocks in its settings",
        )
    budget = Budget(share=1 / speedup, **fields)
    return budget.choose(steps, context.blocks, context.step_macs)


def by_preset(spec: MethodSpec, context: Context) -> Method:
    """One of our presets, which are whole schedules."""
    checked(spec, ())
    return _cached(
        spec, spec.steps or context.steps, f"preset: {spec.name}", preset_named(spec.name)
    )


def by_gate(spec: MethodSpec, context: Context) -> Method:
    """TGATE: all cross-attention as it was at the last step before `gate`, 10 where not given.

    From there on there is no guidance either, unless the setting `guidance` is true.
    """
    settings, steps = checked(spec, ("gate", "guidance")), spec.steps or context.steps
    guidance = settings.pop("guidance", False)
    method = _cached(spec, steps, "TGATE", tgate(halves=not guidance, **settings))
    full = tgate(**settings).table(steps, 1).count(None)
    return dataclasses.replace(method, guided=None if guidance else full)


def by_span(spec: MethodSpec, context: Context) -> Method:
    """Exactly these blocks, [first, last), at all but every `interval`-th step."""
    settings = checked(spec, ("span", "interval", "predictor"))
    given, interval = settings.get("span"), settings.get("interval", 2)
    if not isinstance(given, Sequence) or len(given) != 2:
        raise BenchError(f"span is {given!r}", "Give the first block and the last + 1: [7, 14]")
    if isinstance(interval, bool) or not isinstance(interval, int) or interval < 1:
        raise BenchError(f"interval is {interval!r}", "Give a whole number of steps from 1 on")
    span, steps = Span(*given), spec.steps or context.steps
    first = steps % interval  # as Eq. 7: whole intervals after the leftover
    rows = tuple(
        None if step < first or (step - first) % interval == 0 else span for step in range(steps)
    )
    schedule = ExplicitSchedule(rows, predictor=settings.get("predictor", "reuse"))
    return _cached(spec, steps, "Δ-Cache", schedule)


def interval_one(spec: MethodSpec, context: Context) -> Method:
    """Our backend with nothing cached: what compiling changes, and caching does not."""
    checked(spec, ())
    return _cached(spec, spec.steps or context.steps, "interval 1, nothing cached", never())


def from_file(spec: MethodSpec, context: Context) -> Method:
    """A schedule's file: by its path, or by its name among those tuned to the model.

    Raises:
        ScheduleFileError: If there is none.
    """
    checked(spec, ())
    path = schedule_path(spec.name, context)
    schedule = load_schedule(path)
    steps = spec.steps or schedule.length or context.steps
    named = path.stem if Path(spec.name).suffix else spec.name
    method = _cached(spec, steps, named, schedule)
    return method if named == spec.name else _renamed(method, name_of(spec, steps, named))


def is_file(name: str) -> bool:
    """Whether a method's name is that of a schedule's file, or of a tuned one."""
    return name.endswith((".json", ".toml")) or name.startswith("tuned")


def schedule_path(name: str, context: Context) -> Path:
    """Where a schedule lies."""
    if name.endswith((".json", ".toml")):
        return Path(name)
    if context.folder is None:
        raise ScheduleFileError(f"{name}.json", f"{context.model} has no folder of schedules")
    path = context.folder / SCHEDULES / f"{name}.json"
    if not path.exists():
        raise ScheduleFileError(str(path), f"{context.model} has no schedule of that name")
    return path


def checked(spec: MethodSpec, allowed: Sequence[str]) -> dict[str, Any]:
    """The settings, if all of them mean something.

    Raises:
        BenchError: If one does not.
    """
    for name in spec.settings:
        if name not in allowed:
            known = f"It takes {', '.join(allowed)}" if allowed else "It takes none"
            raise BenchError(
                f"method {spec.name!r} has no setting {name!r}", did_you_mean(name, allowed) + known
            )
    # Files know lists only.
    return {
        name: tuple(value) if isinstance(value, list) else value
        for name, value in spec.settings.items()
    }


def _cached(spec: MethodSpec, steps: int, label: str, schedule: AnySchedule) -> Method:
    schedule.check_steps(steps)
    return Method(
        name=name_of(spec, steps),
        label=label_of(spec, label),
        kind="cache",
        steps=steps,
        schedule=schedule,
        settings=dict(spec.settings),
        remark=spec.remark,
    )


def _renamed(method: Method, name: str) -> Method:
    return dataclasses.replace(method, name=name)
