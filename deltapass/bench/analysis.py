"""What is known of a model before anything is drawn: its blocks, and what schedules make of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

from deltapass.backend import analyse, failures_refused
from deltapass.bench.methods.method import Context, Method
from deltapass.bench.subjects import Subject
from deltapass.compiler.outline import Outline
from deltapass.compiler.settle import StepCosts, plan_for
from deltapass.compiler.tracing import trace
from deltapass.errors import UnsupportedGraphError
from deltapass.explanation import Report, report_of
from deltapass.graph.program import Macs
from deltapass.options import NOTHING_STATED, parse_options
from deltapass.pipelines.first_call import first_call


@final
@dataclass(frozen=True, kw_only=True)
class Analysis:
    """A model's graph, or why none of it can be cached.

    Attributes:
        outline: The graph of its first call; None where it is refused.
        refusal: Why, if it is.
        images: That are sampled by one call.
    """

    outline: Outline | None
    refusal: str | None = None
    images: int = 1

    @property
    def blocks(self) -> int | None:
        """Of its stack."""
        return None if self.outline is None else len(self.outline.stack)

    @property
    def call_macs(self) -> Macs | None:
        """Of one full call, an image."""
        return None if self.outline is None else self.outline.program.macs * (1 / self.images)

    def report(self, method: Method) -> Report | None:
        """What a method of ours does on a trajectory, by call; None for others.

        Raises:
            ScheduleError, UnsupportedGraphError: If its schedule does not fit the model.
        """
        if self.outline is None or method.schedule is None:
            return None
        options = {**method.options, "schedule": method.schedule, "steps": method.steps}
        return report_of(plan_for(self.outline, parse_options(options)), method.steps)

    def context(self, subject: Subject, steps: int) -> Context:
        """What methods are made for."""
        return Context(
            model=subject.name,
            steps=steps,
            folder=subject.folder,
            blocks=self.blocks,
            step_macs=None if self.outline is None else StepCosts(self.outline),
        )


def analysed(subject: Subject, seeds: Sequence[int]) -> Analysis:
    """Look at the first call that the pipeline makes of its denoiser; nothing is run.

    Raises:
        PipelineCallError: If the pipeline refuses the call.
    """
    some = seeds[: subject.batch]
    model, args, kwargs = first_call(subject.pipeline, subject.call(some))
    try:
        with failures_refused():
            outline = analyse(*trace(model, args, dict(kwargs)), NOTHING_STATED)
    except UnsupportedGraphError as error:
        return Analysis(outline=None, refusal=str(error), images=len(some))
    return Analysis(outline=outline, images=len(some))
