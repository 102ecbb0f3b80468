"""Schedules: what every step of a trajectory does, fixed before the run.

A step either refreshes (runs the whole stack) or is cached (skips one span of blocks). Pure
Python: nothing here knows a graph. Source: Delta-DiT, arXiv:2406.01125, Eq. 3 and 6-7.
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
import json
import math
import os
import re
import tomllib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final, Literal, final, get_args

from deltapass.errors import (
    BoundaryOutsideError,
    ScheduleError,
    ScheduleFileError,
    StepCountError,
    TooManyCachedBlocksError,
)

Region = Literal["deep", "shallow", "middle"]
REGIONS: Final[tuple[Region, ...]] = get_args(Region)
FEW_STEPS: Final = 8  # trajectories up to this length get the paper's few-step (LCM) defaults
BOUNDARY: Final = 0.6
ROW_FORM: Final = "Write 'refresh', 'start:stop' such as '7:28', or 'region:count' as 'deep:21'"


@final
@dataclass(frozen=True, order=True, slots=True)
class Span:
    """Consecutive blocks skipped together: `start` up to, but without, `stop`."""

    start: int
    stop: int

    def __post_init__(self) -> None:
        _check_count("start of a span", self.start, 0)
        _check_count("stop of a span", self.stop, self.start + 1)

    def __len__(self) -> int:
        return self.stop - self.start

    def __str__(self) -> str:
        return f"blocks {self.start}..{self.stop - 1}"


Table = tuple[Span | None, ...]  # one entry a step: None refreshes, a span is skipped


@final
@dataclass(frozen=True, kw_only=True, slots=True)
class Schedule:
    """A schedule by rule, for any number of steps and blocks.

    `interval` N is one refresh and N - 1 cached steps, at most `max_consecutive` of them; the
    first `warm_up` and last `cool_down` steps are full. Steps before `boundary` (a step, or a
    fraction of the trajectory) skip `cached_blocks` blocks in region `outline`, later ones in
    `detail`. None stands for the paper's default, which depends on steps and blocks.

    Raises:
        ScheduleError: If a field has a value that no trajectory could follow.

    Source:
        Section 3 (Delta-DiT, interval) and Eq. 7; the few-step defaults are those for LCM.
    """

    interval: int = 2
    cached_blocks: int | None = None
    boundary: int | float | None = None
    outline: Region = "deep"
    detail: Region = "shallow"
    warm_up: int = 0
    cool_down: int = 0
    max_consecutive: int | None = None

    def __post_init__(self) -> None:
        for name, least in (("interval", 1), ("warm_up", 0), ("cool_down", 0)):
            _check_count(name, getattr(self, name), least)
        for name, least in (("cached_blocks", 0), ("max_consecutive", 1)):
            if getattr(self, name) is not None:
                _check_count(name, getattr(self, name), least)
        _check_region("outline", self.outline)
        _check_region("detail", self.detail)
        if isinstance(self.boundary, float):
            if not 0.0 <= self.boundary <= 1.0:
                raise ScheduleError(f"boundary is {self.boundary!r}", "A fraction is 0.0 to 1.0")
        elif self.boundary is not None:
            _check_count("boundary", self.boundary, 0)

    @property
    def caches(self) -> bool:
        """Whether any trajectory could have a cached step."""
        return self.interval > 1 and self.cached_blocks != 0

    @property
    def needs_steps(self) -> bool:
        """Whether the number of steps must be known before the first one."""
        by_step = isinstance(self.boundary, int) and self.outline != self.detail
        return self.caches and (by_step or self.cool_down > 0)

    @property
    def few_step_defaults(self) -> bool:
        """Whether `cached_blocks` depends on the trajectory being a few-step one."""
        return self.caches and self.cached_blocks is None

    def check_steps(self, steps: int) -> None:
        """Raise BoundaryOutsideError if the boundary lies outside `steps` steps."""
        _check_count("steps", steps, 1)
        if isinstance(self.boundary, int) and self.boundary > steps:
            raise BoundaryOutsideError(self.boundary, steps)

    def table(self, steps: int, blocks: int) -> Table:
        """What each of `steps` steps of a model with `blocks` blocks does.

        Cached steps are spread over floor(T / N) intervals after the leftover T mod N full
        steps, T being the steps that are neither warm-up nor cool-down. Step 0 refreshes.

        Raises:
            TooManyCachedBlocksError: If `cached_blocks` is above `blocks`.
            BoundaryOutsideError: If `boundary` is above `steps`.

        Source:
            Eq. 7 (intervals after the leftover).
        """
        self.check_steps(steps)
        outline, detail = self._phases(blocks, few=steps <= FEW_STEPS)
        boundary = self._boundary_step(steps)
        stop = steps - self.cool_down
        start = self.warm_up + max(0, stop - self.warm_up) % self._stride

        def row(step: int) -> Span | None:
            full = not start <= step < stop or (step - start) % self._stride == 0
            return None if full else outline if step < boundary else detail

        return tuple(row(step) for step in range(steps))

    def at(self, index: int, level: float, blocks: int) -> Span | None:
        """What one step does when the number of steps is unknown; None is a refresh.

        Args:
            index: Steps since this trajectory began, which may be half-way down the noise.
            level: Noise level from 1.0 (pure noise) to 0.0; it places the boundary.
            blocks: Blocks of the model.

        Raises:
            ScheduleError: If the schedule cannot be followed without the number of steps.
            TooManyCachedBlocksError: If `cached_blocks` is above `blocks`.
        """
        if self.needs_steps:
            raise _unknown_length("its boundary is a step or its last steps are full")
        outline, detail = self._phases(blocks, few=False)
        if index < max(1, self.warm_up) or (index - self.warm_up) % self._stride == 0:
            return None
        fraction = BOUNDARY if self.boundary is None else self.boundary
        # Levels come from float32 timesteps: step b itself must not count as just above.
        return outline if level > 1.0 - fraction + 1e-6 else detail

    def spans(self, blocks: int, steps: int | None = None) -> tuple[Span, ...]:
        """The distinct spans it may skip, outline first; none if it never caches."""
        rows = self._phases(blocks, few=False) if steps is None else self.table(steps, blocks)
        return _distinct(rows)

    @property
    def _stride(self) -> int:
        """Steps from one refresh to the next."""
        cap = self.interval if self.max_consecutive is None else self.max_consecutive + 1
        return min(self.interval, cap)

    def _boundary_step(self, steps: int) -> int:
        if isinstance(self.boundary, int):
            return self.boundary
        default = 0.5 if steps <= FEW_STEPS else BOUNDARY
        return _rounded(steps * (default if self.boundary is None else self.boundary))

    def _phases(self, blocks: int, *, few: bool) -> tuple[Span, Span] | tuple[None, None]:
        _check_count("blocks", blocks, 1)
        count = self.cached_blocks
        if count is None:
            count = max(1, _rounded(blocks / 7)) if few else _rounded(blocks * 0.75)
        if count > blocks:
            raise TooManyCachedBlocksError(count, blocks)
        if not self.caches:
            return None, None
        return region_span(self.outline, count, blocks), region_span(self.detail, count, blocks)


@final
@dataclass(frozen=True, slots=True)
class ExplicitSchedule:
    """A schedule given row by row, for one number of steps; row 0 refreshes."""

    rows: Table

    def __post_init__(self) -> None:
        if not isinstance(self.rows, tuple) or not self.rows:
            raise ScheduleError(f"rows is {self.rows!r}", "Give a tuple with one row a step")
        for step, row in enumerate(self.rows):
            if row is not None and not isinstance(row, Span):
                raise ScheduleError(f"row {step} is {row!r}", "A row is None or a Span")
        if self.rows[0] is not None:
            raise ScheduleError(f"row 0 skips {self.rows[0]}", "The first step must refresh")

    @property
    def needs_steps(self) -> bool:
        """True: a table fits one length only."""
        return True

    @property
    def few_step_defaults(self) -> bool:
        """False: nothing is left to defaults."""
        return False

    def check_steps(self, steps: int) -> None:
        """Raise StepCountError unless the table has `steps` rows."""
        _check_count("steps", steps, 1)
        if len(self.rows) != steps:
            raise StepCountError(len(self.rows), steps)

    def table(self, steps: int, blocks: int) -> Table:
        """The rows, once they are known to fit.

        Raises:
            StepCountError: If the table has not `steps` rows.
            TooManyCachedBlocksError: If a row skips blocks that the model does not have.
        """
        self.check_steps(steps)
        _check_fits(self.rows, blocks)
        return self.rows

    def at(self, index: int, level: float, blocks: int) -> Span | None:
        """Raise ScheduleError: a table needs the number of steps."""
        raise _unknown_length(f"step {index} of {len(self.rows)} at noise level {level:g}")

    def spans(self, blocks: int, steps: int | None = None) -> tuple[Span, ...]:
        """The distinct spans of the rows, in the order of their first use."""
        return _distinct(self.table(len(self.rows) if steps is None else steps, blocks))


AnySchedule = Schedule | ExplicitSchedule


def region_span(region: Region, cached: int, blocks: int) -> Span:
    """The span of `cached` blocks at the start, in the middle or at the end of the stack.

    Raises:
        ScheduleError: If the region is unknown or `cached` is below 1.
        TooManyCachedBlocksError: If `cached` is above `blocks`.

    Source:
        Fig. 2 and 10: 21 of 28 blocks are 1-21, 4-24 or 8-28, counted from 1.
    """
    _check_region("region", region)
    _check_count("cached_blocks", cached, 1)
    if cached > blocks:
        raise TooManyCachedBlocksError(cached, blocks)
    start = {"shallow": 0, "middle": (blocks - cached) // 2, "deep": blocks - cached}[region]
    return Span(start, start + cached)


# ---- schedules by name ------------------------------------------------------------------------


def delta_dit(**fields: Any) -> Schedule:
    """Delta-DiT: the deep blocks are cached first, the shallow ones after the boundary."""
    return Schedule(**fields)


def delta_cache(region: Region, /, **fields: Any) -> Schedule:
    """Delta-Cache (Eq. 3): one region is cached along the whole trajectory."""
    return Schedule(outline=region, detail=region, **fields)


def reversed_phases(**fields: Any) -> Schedule:
    """The ablation of Table 5: shallow blocks first, deep ones after the boundary."""
    return Schedule(outline="shallow", detail="deep", **fields)


def never() -> Schedule:
    """Every step refreshes: the plain model."""
    return Schedule(interval=1, cached_blocks=0)


SCHEDULES: Final[Mapping[str, Callable[..., Schedule]]] = MappingProxyType(
    {
        "delta-dit": delta_dit,
        "delta-cache-deep": functools.partial(delta_cache, "deep"),
        "delta-cache-middle": functools.partial(delta_cache, "middle"),
        "delta-cache-shallow": functools.partial(delta_cache, "shallow"),
        "reversed": reversed_phases,
        "none": never,
    }
)
FIELD_NAMES: Final = tuple(field.name for field in dataclasses.fields(Schedule))


def named_schedule(name: str, /, **fields: Any) -> Schedule:
    """The schedule of that name in SCHEDULES, with other fields than the defaults.

    Raises:
        ScheduleError: If the name or a field is unknown, or the name already fixes a field.
    """
    if not isinstance(name, str) or name not in SCHEDULES:  # files hold any value
        raise _unknown("schedule", name, tuple(SCHEDULES))
    for field in fields:
        if field not in FIELD_NAMES:
            raise _unknown("field", field, FIELD_NAMES)
    try:
        return SCHEDULES[name](**fields)
    except TypeError as error:  # the constructor itself sets one of these fields
        given = ", ".join(fields)
        remedy = "Drop that field, or use 'delta-dit', which takes all of them"
        raise ScheduleError(f"schedule {name!r} does not take all of: {given}", remedy) from error


# ---- budget, in MACs --------------------------------------------------------------------------


def table_macs(table: Table, block_macs: Sequence[float], other_macs: float = 0.0) -> float:
    """Cost of a whole trajectory.

    Args:
        table: What each step does.
        block_macs: MACs of each block, in the order of the stack.
        other_macs: MACs before and after the stack, paid at every step.

    Returns:
        MACs, summed over all steps.

    Raises:
        TooManyCachedBlocksError: If a row skips blocks beyond `block_macs`.
    """
    _check_fits(table, len(block_macs))
    cost: dict[Span | None, float] = {None: math.fsum([*block_macs, other_macs])}
    for span in _distinct(table):
        kept = (*block_macs[: span.start], *block_macs[span.stop :], other_macs)
        cost[span] = math.fsum(kept)
    return math.fsum(cost[row] for row in table)


def interval_for_budget(steps: int, model_macs: float, budget: float) -> int:
    """The interval N whose refreshes alone would about use up the budget.

    Args:
        steps: Steps T of the trajectory.
        model_macs: MACs of one full step; the paper's N_b * M_b.
        budget: Wanted MACs of the whole trajectory.

    Raises:
        ScheduleError: If a cost is not above 0.

    Source:
        Eq. 6: N = ceil(T * N_b * M_b / M_g).
    """
    _check_count("steps", steps, 1)
    for name, value in (("model_macs", model_macs), ("budget", budget)):
        if not 0.0 < value < math.inf:
            raise ScheduleError(f"{name} is {value!r}", "It must be a number of MACs above 0")
    # A ratio that is whole but for rounding must not be counted up to the next one.
    return max(1, math.ceil(steps * model_macs / budget - 1e-9))


def schedule_for_budget(
    budget: float,
    steps: int,
    block_macs: Sequence[float],
    other_macs: float = 0.0,
    interval: int | None = None,
) -> Schedule:
    """The Delta-DiT schedule that caches the fewest blocks and stays within a budget.

    Args:
        budget: MACs the whole trajectory may cost.
        steps: Steps of the trajectory.
        block_macs: MACs of each block; they may differ.
        other_macs: MACs before and after the stack, paid at every step.
        interval: Interval N; Eq. 6 chooses it when None.

    Raises:
        ScheduleError: If the interval cannot reach the budget with all blocks cached.

    Source:
        Eq. 6 and 7, with the MACs of the real graph in place of N_b * M_b.
    """
    n = interval
    if n is None:
        n = interval_for_budget(steps, math.fsum([*block_macs, other_macs]), budget)
    cost = math.inf
    for cached in range(len(block_macs) + 1):
        schedule = Schedule(interval=n, cached_blocks=cached)
        cost = table_macs(schedule.table(steps, len(block_macs)), block_macs, other_macs)
        if cost <= budget:
            return schedule
    fact = f"a budget of {budget:g} MACs for {steps} steps is below the {cost:g} MACs"
    remedy = "Raise the budget, sample fewer steps, or give a larger interval"
    raise ScheduleError(f"{fact} that interval {n} reaches with every block cached", remedy)


# ---- text and files ---------------------------------------------------------------------------


def table_rows(table: Table) -> list[str]:
    """One text a step, as in a schedule file: 'refresh' or 'start:stop'."""
    return ["refresh" if row is None else f"{row.start}:{row.stop}" for row in table]


def table_text(table: Table, blocks: int) -> str:
    """One line for the whole table.

    R refreshes; d21, s21 skip the 21 deepest or shallowest blocks; 4:25 any other span.

    Example:
        >>> table_text(Schedule(boundary=2).table(6, 28), 28)
        'R d4 R s4 R s4'
    """

    def word(row: Span | None) -> str:
        if row is None:
            return "R"
        if row.stop == blocks:
            return f"d{len(row)}"
        return f"s{len(row)}" if row.start == 0 else f"{row.start}:{row.stop}"

    return " ".join(word(row) for row in table)


def load_schedule(path: str | os.PathLike[str]) -> AnySchedule:
    """Read a schedule from a .json or .toml file.

    The file holds either the fields of `Schedule` and perhaps a name, {"schedule": "reversed",
    "interval": 3}, or a table, {"table": ["refresh", "deep:21", "0:21"], "blocks": 28}, where
    "blocks" is needed for regions only.

    Raises:
        ScheduleFileError: If the file cannot be read, or a key or row in it has no meaning.
    """
    try:
        content = _read(Path(path))
        if "table" in content:
            return _explicit(content)
        return named_schedule(content.pop("schedule", "delta-dit"), **content)
    except ScheduleError as error:
        raise ScheduleFileError(os.fspath(path), f"{error.fact}. {error.remedy}") from error
    except (OSError, ValueError) as error:
        raise ScheduleFileError(os.fspath(path), f"cannot be read: {error}") from error


def save_schedule(schedule: AnySchedule | Table, path: str | os.PathLike[str]) -> None:
    """Write a schedule, or a table, to a .json file that `load_schedule` reads back equal.

    Raises:
        ScheduleFileError: If the name does not end in .json or the file cannot be written.
    """
    if Path(path).suffix != ".json":
        raise ScheduleFileError(os.fspath(path), "schedules are written as .json only")
    if isinstance(schedule, Schedule):
        values = {name: getattr(schedule, name) for name in FIELD_NAMES}
        content = {name: value for name, value in values.items() if value is not None}
    else:
        rows = schedule.rows if isinstance(schedule, ExplicitSchedule) else schedule
        content = {"table": table_rows(ExplicitSchedule(rows).rows)}
    try:
        Path(path).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    except OSError as error:
        raise ScheduleFileError(os.fspath(path), f"cannot be written: {error}") from error


def _read(path: Path) -> dict[str, Any]:
    if path.suffix not in (".json", ".toml"):
        raise ScheduleError(f"its name ends in {path.suffix!r}", "Use .json or .toml")
    text = path.read_text(encoding="utf-8")
    content = json.loads(text) if path.suffix == ".json" else tomllib.loads(text)
    if not isinstance(content, dict):
        raise ScheduleError(f"it holds a {type(content).__name__}", "Give an object with keys")
    return content


def _explicit(content: Mapping[str, Any]) -> ExplicitSchedule:
    for key in content:
        if key not in ("table", "blocks"):
            raise _unknown("key", key, ("table", "blocks"))
    table, blocks = content["table"], content.get("blocks")
    if not isinstance(table, list):
        raise ScheduleError(f"table is {table!r}", "Give a list with one row a step")
    if blocks is not None:
        _check_count("blocks", blocks, 1)
    return ExplicitSchedule(tuple(_row(step, text, blocks) for step, text in enumerate(table)))


def _row(step: int, text: object, blocks: int | None) -> Span | None:
    if text == "refresh":
        return None
    match = re.fullmatch(r"(deep|shallow|middle|\d+):(\d+)", str(text), re.ASCII)
    if match is None:
        raise ScheduleError(f"row {step} is {text!r}", ROW_FORM)
    head, count = match[1], int(match[2])
    region = next((region for region in REGIONS if region == head), None)
    if region is not None and blocks is None:
        raise ScheduleError(f"row {step} is {text!r} but there is no 'blocks'", "Add that key")
    try:
        span = Span(int(head), count) if region is None else region_span(region, count, blocks or 0)
        _check_fits((span,), span.stop if blocks is None else blocks)
    except ScheduleError as error:
        raise ScheduleError(f"row {step} is {text!r}: {error.fact}", error.remedy) from error
    return span


# ---- checks -----------------------------------------------------------------------------------


def _distinct(rows: Sequence[Span | None]) -> tuple[Span, ...]:
    return tuple(dict.fromkeys(row for row in rows if row is not None))


def _check_count(name: str, value: object, least: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ScheduleError(f"{name} is {value!r}", f"It must be a whole number from {least} on")


def _check_region(name: str, value: object) -> None:
    if value not in REGIONS:
        raise ScheduleError(f"{name} is {value!r}", f"It must be one of {', '.join(REGIONS)}")


def _check_fits(table: Table, blocks: int) -> None:
    reach = max((row.stop for row in table if row is not None), default=0)
    if reach > blocks:
        raise TooManyCachedBlocksError(reach, blocks)


def _unknown(kind: str, name: object, valid: Sequence[str]) -> ScheduleError:
    near = difflib.get_close_matches(str(name), valid, n=1)
    hint = f"Did you mean {near[0]!r}? " if near else ""
    return ScheduleError(f"unknown {kind} {name!r}", f"{hint}Known are: {', '.join(valid)}")


def _unknown_length(why: str) -> ScheduleError:
    return ScheduleError(
        f"this schedule needs the number of steps: {why}",
        "Give options={'steps': n} or open a session with steps=n",
    )


def _rounded(value: float) -> int:
    """Round half up; Python's round would send 4.5 to 4 and 5.5 to 6."""
    return math.floor(value + 0.5)
