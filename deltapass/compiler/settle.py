"""The plan of a model under the user's options; a budget becomes a schedule here."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import final

from deltapass.compiler.addends import Addends
from deltapass.compiler.outline import Outline
from deltapass.compiler.plan import Plan, make_plan, plan_span
from deltapass.compiler.rewrite import cached_program
from deltapass.errors import ScheduleError, StreamError
from deltapass.options import DEFAULT_STEPS, Options
from deltapass.schedule.budget import Budget
from deltapass.schedule.rules import AnySchedule, Schedule, Span, unknown_length


def plan_for(outline: Outline, options: Options) -> Plan:
    """Plan a model as the options say.

    Raises:
        ScheduleError: If the schedule does not fit the model, or its budget cannot be met.
        StreamError: If not even one block of a wanted span can be cached.
    """
    schedule: AnySchedule | Budget = options.schedule
    if isinstance(schedule, Budget):
        schedule = _chosen(schedule, outline, options)
    return make_plan(outline, schedule, order=options.order, steps=options.steps)


def _chosen(budget: Budget, outline: Outline, options: Options) -> Schedule:
    """The schedule of a budget, for DEFAULT_STEPS steps where the options name no number.

    On much longer trajectories a small share would choose an interval that is longer than those
    which are sampled, and nothing would ever be cached.
    """
    if options.steps is None and budget.needs_steps:
        raise unknown_length("its budget depends on where the boundary lies")
    steps, blocks = options.steps or DEFAULT_STEPS, len(outline.stack)
    costs = StepCosts(outline, options.order)
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

    A span of which no block can be cached costs infinitely much, so that no budget chooses it.

    Attributes:
        outline: The model.
        order: Order of the delta prediction.
        refusal: Why the first such span that was asked for cannot be cached, if there was one.
    """

    outline: Outline
    order: int
    refusal: StreamError | None = None
    _addends: Addends = field(init=False)
    _known: dict[Span | None, float] = field(init=False, default_factory=dict)

    def __post_init__(self) -> None:
        self._addends = Addends(self.outline.captured)

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
            planned = plan_span(self.outline, span, self._addends)
        except StreamError as error:
            self.refusal = self.refusal or error
            return math.inf
        return cached_program(program, planned, self.order).macs.full
