"""`deltapass.calibrate`: the weights of a schedule's cached rows, fitted on some trajectories."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Final

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from deltapass.errors import (
    CalibrationError,
    CalibrationWarning,
    OptionError,
    ScheduleError,
    warn,
)
from deltapass.pipelines.attach import attachment_of
from deltapass.schedule.explicit import AnySchedule, ExplicitSchedule
from deltapass.schedule.given import GivenSchedule, schedule_or_none
from deltapass.schedule.made_for import Sampler
from deltapass.schedule.predictors import MOST_BUFFERS
from deltapass.sessions.report import SessionReport
from deltapass.tuning.fit.calibration import LITTLE, Calibration, RowFit
from deltapass.tuning.fit.walk import ALL, Group, GroupFit, Sharing, Walk, judged, weighed
from deltapass.tuning.loops import Loop, open_loop
from deltapass.tuning.subject import Subject, look_at

SEEDS: Final = 8
BATCH: Final = 2  # seeds of one batch of trajectories
DEFAULT: Final = Sharing()

Advance = Callable[[], None]


def calibrate(  # noqa: PLR0913, D417 - what a user may say of it; loops say some of it
    pipe_or_loop: Any,
    *,
    schedule: GivenSchedule | None = None,
    call: Mapping[str, Any] | Callable[[Sequence[int]], Mapping[str, Any]] | None = None,
    steps: int | None = None,
    seeds: int | Sequence[int] = SEEDS,
    batch: int = BATCH,
    weights: int = DEFAULT.depth,
    per_branch: bool = False,
    per_stream: bool = False,
    regularisation: float = DEFAULT.strength,
    options: Mapping[str, Any] | None = None,
    sampler: Sampler | None = None,
    progress: Progress | bool = True,
) -> Calibration:
    """Fit the weights by which a schedule's cached steps combine the deltas of earlier refreshes.

    Some trajectories are run. At every cached step the span's true delta is worked out on that
    step's own inputs, the row's weights are fitted to all seen so far, and the step goes on with
    their prediction. Only inner products are kept. A cached step costs a full and a cached call.

    Args:
        pipe_or_loop: A pipeline or a function that samples; `deltapass.tuning.loops.open_loop`
            says more, also of `call`, `steps`, `options` and `sampler`.
        schedule: Which span is skipped when (object, name or file); by default that of the
            pipeline, where it is enabled or attached with one, or the compiled model's own.
        seeds: Seeds of the trajectories, or how many: then from 0 on.
        batch: Seeds of one batch. Of several, each is judged by weights fitted to the others.
        weights: K, how many deltas a row reads at most: 1 to 4.
        per_branch: Fit every branch of guidance on its own; as `per_stream` every stream of a span.
        regularisation: How many samples the weights of the schedule's predictor (linear, where it
            is "reuse") count for: with 2, one sample moves them a third of the way.
        progress: Show a bar in a terminal; or one of rich's to show it in.

    Raises:
        OptionError: If a number is out of range.
        LoopError, AttachError: If nothing can be sampled so.
        CalibrationError: If no row could be fitted, or a delta is not finite.
        ScheduleError: If it does not fit the model or the steps, or its predictor keeps no deltas.
    """
    sharing = _sharing(weights, per_branch, per_stream, regularisation)
    batches = _batches(seeds, batch)
    with open_loop(pipe_or_loop, call=call, steps=steps, options=options, sampler=sampler) as loop:
        subject = look_at(loop, batches[0])
        chosen = schedule_or_none(schedule) or _lent(pipe_or_loop) or subject.schedule
        with _bar(progress, len(batches)) as advance:
            found = fit_rows(loop, subject, chosen, batches, sharing, advance)
    _warn_of_weak(found)
    return found


def _lent(pipe_or_loop: object) -> AnySchedule | None:
    """What an enabled or attached pipeline lends its calls."""
    attached = attachment_of(pipe_or_loop)
    return None if attached is None else attached.schedule


def fit_rows(  # noqa: PLR0913, PLR0917 - what a search has at hand
    loop: Loop,
    subject: Subject,
    schedule: AnySchedule,
    batches: Sequence[Sequence[int]],
    sharing: Sharing = DEFAULT,
    advance: Advance | None = None,
) -> Calibration:
    """As `calibrate`, in a loop that is open already: for many schedules of one model in a row.

    Nothing compiles but bodies that no schedule before had (with the lowering "eager" nothing at
    all): another table, other spans or another K are other lists of calls of the same bodies. What
    it costs is its calls, a full and a cached one for every cached step, so few seeds in one batch
    are cheap, and hold the weights nearer to the predictor's.

    Example:
        with open_loop(pipe, call=call, steps=20) as loop:
            subject = look_at(loop, seeds)
            for table in tables:
                found = fit_rows(loop, subject, ExplicitSchedule(table), [seeds])
                samples = loop.run(seeds, found.schedule).samples

    Args:
        loop: Runs the trajectories.
        subject: What `look_at` says of it.
        schedule: Which span is skipped when.
        batches: Seeds of each batch; batches of one size find the same graph.
        sharing: How weights are fitted.
        advance: Called after every batch.

    Raises:
        CalibrationError: If no row could be fitted, or a delta is not finite.
        ScheduleError: If the schedule does not fit the model or the steps, or its predictor keeps
            no deltas.
    """
    rows = rows_of(schedule, subject)
    walk = Walk(rows, sharing)
    for some in batches:
        walk.begin(len(some))
        report = loop.run(some, walk.schedule, observer=walk).report
        if not walk.fits():  # nor will those that follow have any
            raise _nothing_cached(report)
        if advance is not None:
            advance()
    fits = walk.fits()
    made_for = subject.made_for(loop.sampler)
    made = ExplicitSchedule(rows.rows, rows.predictor, weighed(rows, fits), made_for)
    samples = sum(map(len, batches))
    return Calibration(schedule=made, rows=_row_fits(rows, fits), samples=samples)


def rows_of(schedule: AnySchedule, subject: Subject) -> ExplicitSchedule:
    """The schedule as a table, with its predictor.

    Raises:
        ScheduleError: If it does not fit the model or the steps, or its predictor keeps no deltas.
    """
    if schedule.forecast.accumulates:
        raise ScheduleError(
            f"the predictor {schedule.forecast.name!r} keeps no deltas that could have weights",
            "Give a schedule with one that reads the newest deltas, such as 'linear'",
        )
    return ExplicitSchedule(schedule.table(subject.steps, subject.blocks), schedule.forecast.name)


def _sharing(weights: int, per_branch: bool, per_stream: bool, strength: float) -> Sharing:
    if isinstance(weights, bool) or weights not in range(1, MOST_BUFFERS + 1):
        raise OptionError("weights", weights, f"a whole number from 1 to {MOST_BUFFERS}")
    if not 0.0 <= strength < float("inf"):
        raise OptionError("regularisation", strength, "a number from 0 on")
    return Sharing(
        depth=weights, per_branch=per_branch, per_stream=per_stream, strength=float(strength)
    )


def _batches(seeds: int | Sequence[int], size: int) -> list[tuple[int, ...]]:
    listed = tuple(range(seeds)) if isinstance(seeds, int) else tuple(seeds)
    if not listed:
        raise OptionError("seeds", seeds, "a number of at least 1, or some seeds")
    if len({*listed}) < len(listed):
        raise OptionError("seeds", list(listed), "different seeds")
    if isinstance(size, bool) or not isinstance(size, int) or size < 1:
        raise OptionError("batch", size, "a whole number of at least 1")
    return [listed[start : start + size] for start in range(0, len(listed), size)]


@contextmanager
def _bar(progress: Progress | bool, batches: int) -> Iterator[Advance]:
    """A bar of one tick a batch."""
    if isinstance(progress, Progress):
        task = progress.add_task("calibrating", total=batches)
        yield lambda: progress.advance(task)
        return
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn()
    console = Console(stderr=True)
    quiet = not (progress and console.is_terminal)
    with Progress(*columns, TimeElapsedColumn(), console=console, disable=quiet) as shown:
        task = shown.add_task("calibrating", total=batches)
        yield lambda: shown.advance(task)


def _row_fits(schedule: ExplicitSchedule, fits: Mapping[Group, GroupFit]) -> tuple[RowFit, ...]:
    found = []
    for (step, branch, stream), fit in judged(fits).items():
        span = schedule.rows[step]
        if span is None:
            continue
        found.append(
            RowFit(
                step=step,
                span=span,
                branch=None if branch == ALL else branch,
                stream=None if stream == ALL else int(stream),
                made_at=fit.at,
                weights=fit.used,
                predicted=fit.predicted,
                fitted=fit.fitted,
                unseen=fit.unseen,
                kept=fit.helps,
            )
        )
    return tuple(found)


def _nothing_cached(report: SessionReport) -> CalibrationError:
    calls = report.entries
    forced = [entry.why for entry in calls if entry.forced or entry.refused]
    why = f"; last: {forced[-1]}" if forced else "; the schedule caches none"
    return CalibrationError(
        f"none of {len(calls)} calls was cached{why}",
        "Give a schedule with cached rows, and mend what kept them from being cached",
    )


def _warn_of_weak(found: Calibration) -> None:
    weak = found.weak
    if not weak:
        return
    steps = ", ".join(map(str, dict.fromkeys(row.step for row in weak)))
    worst = max(row.error for row in weak)
    warn(
        f"the fit explains little at step {steps}: the prediction misses up to {100 * worst:.0f} % "
        f"of the delta, and a refresh there, or nearer to it, is worth its time "
        f"(from {100 * LITTLE:.0f} % on this is said)",
        CalibrationWarning,
    )
