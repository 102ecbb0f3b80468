"""Schedules: what every step of a trajectory does, fixed before the run.

A step either refreshes (runs the whole stack) or is cached (skips one span of blocks). Pure
Python: nothing here knows a graph. Source: Delta-DiT, arXiv:2406.01125, Eq. 3 and 6-7.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal, final, get_args

from msgspec import Struct

from deltapass.errors import (
    BoundaryOutsideError,
    ScheduleError,
    SpanOutsideError,
    TooManyCachedBlocksError,
)
from deltapass.schedule.checks import check_count, check_part, placed, unknown_length
from deltapass.schedule.gates import Gate, check_gate, is_above, is_before
from deltapass.schedule.keeps import Keeps, check_keeps
from deltapass.schedule.predictors import Predictor, predictor_named

Region = Literal["deep", "shallow", "middle"]
REGIONS: Final[tuple[Region, ...]] = get_args(Region)
FEW_STEPS: Final = 8  # trajectories up to this length get the paper's few-step (LCM) defaults
BOUNDARY: Final = 0.6


@final
class Span(Struct, frozen=True, order=True, array_like=True, forbid_unknown_fields=True):
    """Consecutive blocks skipped together: `start` up to, but without, `stop`.

    `keeps` says what a cached step has of them: see deltapass/schedule/keeps.py. In files
    [start, stop] or [start, stop, "feature"]. Blocks whose cross-attention is kept are not skipped.
    """

    start: int
    stop: int
    keeps: Keeps = "delta"

    def __post_init__(self) -> None:
        check_count("start of a span", self.start, 0)
        check_count("stop of a span", self.stop, self.start + 1)
        check_keeps(self.keeps)

    @property
    def is_feature(self) -> bool:
        """Whether live-outs are kept, rather than what the span adds."""
        return self.keeps == "feature"

    @property
    def is_cross_attention(self) -> bool:
        """Whether what cross-attention gives is kept, and the blocks run on without it."""
        return self.keeps == "cross-attention"

    def __len__(self) -> int:
        return self.stop - self.start

    def __str__(self) -> str:
        kept = "" if self.keeps == "delta" else f" ({self.keeps})"
        return f"blocks {self.start}..{self.stop - 1}{kept}"


Table = tuple[Span | None, ...]  # one entry a step: None refreshes, a span is skipped


@final
@dataclass(frozen=True, kw_only=True, slots=True)
class Schedule:
    """A schedule by rule, for any number of steps and blocks.

    `interval` N is one refresh and N - 1 cached steps, at most `max_consecutive` of them; several
    hold in turn, and the last of them from then on. The first `warm_up` and last `cool_down` steps
    are full. Steps before `boundary` (a step, or a fraction of the trajectory) skip `cached_blocks`
    blocks (a number, or a fraction of the stack) in region `outline`, later ones in `detail`.
    Trajectories of up to FEW_STEPS steps skip `few_step_blocks` instead, if it is given. None
    stands for the paper's default, which depends on steps and blocks. `predictor` names how a
    cached step's delta is forecast (PREDICTORS; the paper's is "reuse"), `keeps` what is kept
    (see `Span`). With a `gate` (a step, or a fraction of the trajectory) there is no interval: all
    steps before it are full, all from it on reuse what the last of these kept. `halves` says that
    guidance may end there: calls of half the batch go on with the mean of both halves of what was
    kept of cross-attention.

    Raises:
        ScheduleError: If a field has a value that no trajectory could follow.

    Source:
        Section 3 (Delta-DiT, interval) and Eq. 7; the few-step defaults are those for LCM.
    """

    interval: int | tuple[int, ...] = 2
    cached_blocks: int | float | None = None
    few_step_blocks: int | float | None = None
    boundary: int | float | None = None
    outline: Region = "deep"
    detail: Region = "shallow"
    warm_up: int = 0
    cool_down: int = 0
    max_consecutive: int | None = None
    predictor: str = "reuse"
    keeps: Keeps = "delta"
    gate: Gate = None
    halves: bool = False

    def __post_init__(self) -> None:
        check_gate(self.gate, self.interval, self.max_consecutive, halves=self.halves)
        for interval in self._intervals or ((),):
            check_count("interval", interval, 1)
        for name in ("warm_up", "cool_down"):
            check_count(name, getattr(self, name), 0)
        if self.max_consecutive is not None:
            check_count("max_consecutive", self.max_consecutive, 1)
        for name in ("cached_blocks", "few_step_blocks", "boundary"):
            check_part(name, getattr(self, name))
        _check_region("outline", self.outline)
        _check_region("detail", self.detail)
        predictor_named(self.predictor)
        check_keeps(self.keeps)

    @property
    def caches(self) -> bool:
        """Whether any trajectory could have a cached step."""
        steps = self.gate is not None or max(self._intervals) > 1
        return steps and (self.cached_blocks != 0 or bool(self.few_step_blocks))

    @property
    def needs_steps(self) -> bool:
        """Whether the number of steps must be known before the first one."""
        by_step = isinstance(self.boundary, int) and self.has_boundary
        by_length = self.cool_down > 0 or self.forecast.accumulates
        return self.caches and (by_step or by_length)

    @property
    def length(self) -> int | None:
        """None: a rule fits trajectories of any length."""
        return None

    @property
    def few_step_defaults(self) -> bool:
        """Whether what it does depends on the trajectory being a few-step one."""
        by_default = self.boundary is None and self.has_boundary
        by_number = self.cached_blocks is None or self.few_step_blocks is not None
        return self.caches and (by_number or by_default)

    @property
    def has_boundary(self) -> bool:
        """Whether steps before and after the boundary skip different blocks."""
        return self.outline != self.detail

    @property
    def forecast(self) -> Predictor:
        """How the deltas of cached steps are forecast."""
        return predictor_named(self.predictor)

    @property
    def taken(self) -> int:
        """Weighted deltas a stream that a cached variant takes; 0: the newest, unweighted."""
        return self.forecast.taken

    def depths(self, table: Table) -> tuple[int, ...]:
        """Of how many of the newest refreshes each step of a table reads the deltas."""
        return tuple(0 if row is None else self.forecast.reads for row in table)

    @property
    def longest(self) -> int:
        """The most steps from one refresh to the next; no delta is read first later than that."""
        return max(self._strides)

    def check_steps(self, steps: int) -> None:
        """Raise BoundaryOutsideError if the boundary lies outside `steps` steps."""
        check_count("steps", steps, 1)
        if isinstance(self.boundary, int) and self.boundary > steps:
            raise BoundaryOutsideError(self.boundary, steps)

    def table(self, steps: int, blocks: int, start: int = 0) -> Table:
        """What each of `steps` steps of a model with `blocks` blocks does.

        Cached steps are spread over floor(T / N) intervals after the leftover T mod N full
        steps, T being the steps that are neither warm-up nor cool-down. Several intervals begin
        with the first step after the warm-up. Step `start` refreshes; those before it are not run
        (image-to-image begins half-way) and count as full.

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
        begin = start + self.warm_up
        if self.gate is not None:
            begin = max(begin, start + 1, placed(self.gate, steps))
        elif not isinstance(self.interval, tuple):
            begin += max(0, stop - begin) % self.longest

        def row(step: int) -> Span | None:
            full = not begin <= step < stop or self._refreshes(step - begin)
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
            raise unknown_length(
                "its boundary is a step, its last steps are full or its predictor fits the whole"
            )
        outline, detail = self._phases(blocks, few=False)
        if index < max(1, self.warm_up) or self._refreshes(index - self.warm_up):
            return None
        if is_before(self.gate, index, level):
            return None
        fraction = BOUNDARY if self.boundary is None else self.boundary
        return outline if is_above(level, fraction) else detail

    def spans(self, blocks: int, steps: int | None = None) -> tuple[Span, ...]:
        """The distinct spans it may skip, outline first; none if it never caches."""
        rows = self._phases(blocks, few=False) if steps is None else self.table(steps, blocks)
        return distinct(rows)

    @property
    def _intervals(self) -> tuple[int, ...]:
        return self.interval if isinstance(self.interval, tuple) else (self.interval,)

    @property
    def _strides(self) -> tuple[int, ...]:
        """Steps from one refresh to the next, in turn."""
        cap = math.inf if self.max_consecutive is None else self.max_consecutive + 1
        return tuple(int(min(interval, cap)) for interval in self._intervals)

    def _refreshes(self, index: int) -> bool:
        """Whether a step refreshes, counted from the end of the warm-up or from the gate."""
        if self.gate is not None:
            return False
        *first, last = self._strides
        for stride in first:
            if index < stride:
                return index == 0
            index -= stride
        return index % last == 0

    def _boundary_step(self, steps: int) -> int:
        default = 0.5 if steps <= FEW_STEPS else BOUNDARY
        return placed(default if self.boundary is None else self.boundary, steps)

    def _phases(self, blocks: int, *, few: bool) -> tuple[Span, Span] | tuple[None, None]:
        check_count("blocks", blocks, 1)
        count = self._skipped(blocks, few=few)
        if count > blocks:
            raise TooManyCachedBlocksError(count, blocks)
        if not self.caches or not count:
            return None, None
        where = count, blocks, self.keeps
        return region_span(self.outline, *where), region_span(self.detail, *where)

    def _skipped(self, blocks: int, *, few: bool) -> int:
        """How many blocks a cached step skips."""
        own = self.few_step_blocks if few else None
        count = self.cached_blocks if own is None else own
        if count is None:
            count = 1 / 7 if few else 0.75
        if isinstance(count, int):
            return count
        return min(blocks, max(1, placed(count, blocks))) if count else 0


def region_span(region: Region, cached: int, blocks: int, keeps: Keeps = "delta") -> Span:
    """The span of `cached` blocks at the start, in the middle or at the end of the stack.

    Raises:
        ScheduleError: If the region or what it `keeps` is unknown, or `cached` is below 1.
        TooManyCachedBlocksError: If `cached` is above `blocks`.

    Source:
        Fig. 2 and 10: 21 of 28 blocks are 1-21, 4-24 or 8-28, counted from 1.
    """
    _check_region("region", region)
    check_count("cached_blocks", cached, 1)
    if cached > blocks:
        raise TooManyCachedBlocksError(cached, blocks)
    start = {"shallow": 0, "middle": (blocks - cached) // 2, "deep": blocks - cached}[region]
    return Span(start, start + cached, keeps)


# ---- checks -----------------------------------------------------------------------------------


def distinct(rows: Sequence[Span | None]) -> tuple[Span, ...]:
    """The spans of the rows, each once, in the order of their first use."""
    return tuple(dict.fromkeys(row for row in rows if row is not None))


def _check_region(name: str, value: object) -> None:
    if value not in REGIONS:
        raise ScheduleError(f"{name} is {value!r}", f"It must be one of {', '.join(REGIONS)}")


def check_fits(table: Table, blocks: int) -> None:
    """Raise SpanOutsideError if a row reaches beyond the blocks."""
    for row in table:
        if row is not None and row.stop > blocks:
            raise SpanOutsideError(row.start, row.stop, blocks)
