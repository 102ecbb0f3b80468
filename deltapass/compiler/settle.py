"""The plan of a model under the user's options; a budget becomes a schedule here."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import final

from deltapass.compiler.outline import Outline
from deltapass.compiler.plan import Plan, SpanFinder, make_plan
from deltapass.compiler.rewrite import cached_program
from deltapass.errors import (
    ScheduleError,
    SmallSpanError,
    StreamError,
    UnsupportedGraphError,
)
from deltapass.options import Options
from deltapass.schedule.budget import Budget
from deltapass.schedule.checks import unknown_length
from deltapass.schedule.explicit import AnySchedule
from deltapass.schedule.rules import Schedule, Span


def plan_for(outline: Outline, options: Options) -> Plan:
    """Plan a model as the options say.

    Raises:
        ScheduleError: If the schedule does not fit the model, or its budget cannot be met.
        StreamError, SmallSpanError: If no span of the schedule can be cached; with the option
            `strict` if one cannot be, or is smaller than wanted.
    """
    schedule: AnySchedule | Budget = options.schedule
    if isinstance(schedule, Budget):
        schedule = _chosen(schedule, outline, options)
    return make_plan(outline, schedule, steps=options.steps, strict=options.strict)


def _chosen(budget: Budget, outline: Outline, options: Options) -> Schedule:
    """The schedule of a budget, for DEFAULT_STEPS steps where the options name no number.

    On much longer trajectories a small share would choose an interval that is longer than those
    which are sampled, and nothing would ever be cached.
    """
    if options.steps is None and budget.needs_steps:
        raise unknown_length("its budget depends on where the boundary lies")
    if outline.stack.is_nested:  # no span of its outer blocks can be cached
        budget = replace(budget, detail=budget.outline)
    steps, blocks = options.planned_steps, len(outline.stack)
    costs = StepCosts(outline)
    try:
        return budget.choose(steps, blocks, costs)
    except ScheduleError:
        # Another share would not help a model of which nothing can be cached.
        if costs.refusal is not None and budget.least(steps, blocks, costs) >= 1.0:
            raise costs.refusal from None
        raise


@final
@dataclass(slots=True)
class StepCosts:
    """MACs (with attention) of every variant that a model has, as it would be written.

    A step whose span cannot be cached is a full one.

    Attributes:
        outline: The model.
        refusal: Why the first such span that was asked for cannot be, if there was one.
    """

    outline: Outline
    refusal: UnsupportedGraphError | None = None
    _finder: SpanFinder = field(init=False)
    _known: dict[Span | None, float] = field(init=False, default_factory=dict)

    def __post_init__(self) -> None:
        self._finder = SpanFinder(self.outline)

    def __call__(self, span: Span | None) -> float:
        """MACs of a step that skips the span, or of a full one for None."""
        if span not in self._known:
            self._known[span] = self._macs(span)
        return self._known[span]

    def _macs(self, span: Span | None) -> float:
        program = self.outline.program
        if span is None:
            return program.macs.full
        try:
            planned = self._finder.plan(span)
        except (StreamError, SmallSpanError) as error:
            self.refusal = self.refusal or error
            return program.macs.full
        return cached_program(self.outline.program_for([span]), planned).macs.full
