"""The plan of a model under the user's options; a budget becomes a schedule here."""

from __future__ import annotations

import functools
import math

from deltapass.compiler.outline import Outline
from deltapass.compiler.plan import Plan, make_plan, plan_span
from deltapass.compiler.rewrite import cached_program
from deltapass.errors import StreamError
from deltapass.options import Options
from deltapass.schedule.budget import Budget, StepMacs
from deltapass.schedule.rules import Span


def plan_for(outline: Outline, options: Options) -> Plan:
    """Plan a model as the options say.

    Raises:
        ScheduleError: If the schedule does not fit the model, or its budget cannot be met.
        StreamError: If not even one block of a wanted span can be cached.
    """
    schedule, steps = options.schedule, options.steps
    if isinstance(schedule, Budget):
        schedule = schedule.choose(steps, len(outline.stack), step_macs(outline, options.order))
    return make_plan(outline, schedule, order=options.order, steps=steps)


def step_macs(outline: Outline, order: int) -> StepMacs:
    """MACs (with attention) of every variant that a model has, as it would be written.

    A span of which no block can be cached costs infinitely much, so that no budget chooses it.
    """

    @functools.cache
    def macs(span: Span | None) -> float:
        program = outline.program
        if span is None:
            return program.macs.full
        try:
            return cached_program(program, plan_span(outline, span), order).macs.full
        except StreamError:
            return math.inf

    return macs
