"""Stages 4 to 7: from an outline to the selector that runs the model."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import torch

from deltapass.compiler.conditioning import conditioning_of
from deltapass.compiler.lowering import LoweredBodies
from deltapass.compiler.outline import Outline
from deltapass.compiler.plan import Plan
from deltapass.compiler.settle import plan_for
from deltapass.compiler.torch_state import autocast_types
from deltapass.compiler.variants import Variants
from deltapass.cudagraphs.graphed import graphed
from deltapass.options import GRAPHED_MODES, Options
from deltapass.selector.model import ModelInfo, Repertoire
from deltapass.selector.selector import Selector
from deltapass.sessions.changes import fingerprint


def assemble(outlined: Outline, options: Options, bodies: LoweredBodies) -> Selector:
    """Plan, lower every body once, and put the selector before the variants.

    Raises:
        ScheduleError: If the schedule does not fit the model.
        LoweringError: If a body cannot be lowered.
    """
    plan = plan_for(outlined, options)
    variants = Variants(
        outline=outlined,
        bodies=bodies,
        whole=options.fuse == "whole",
        strict=options.strict,
        compiling=as_dynamo_compiles,
    )
    variants.warm_up(plan)
    constants = tuple(outlined.captured.constants.values())
    facts = model_info(plan, (*variants.key, *autocast_types()))
    chosen: Repertoire = variants
    if options.mode in GRAPHED_MODES:
        chosen = graphed(facts, variants, len(constants), options.lowering)
    return Selector(facts, chosen, constants=constants, strict=options.strict)


def model_info(plan: Plan, lowered: tuple[object, ...]) -> ModelInfo:
    """What the run time must know of a planned model.

    Args:
        plan: The plan.
        lowered: What besides the program decides what a delta is and how it lies in memory.
    """
    outlined = plan.outline
    held = outlined.captured.constants.values()
    constants = tuple(tuple(fingerprint(constant).tolist()) for constant in held)
    fits = plan.schedule.forecast.accumulates  # what is held then is no deltas
    return ModelInfo(
        inputs=outlined.captured.inputs,
        conditioning=conditioning_of(outlined),
        structure=hash((lowered, fits, outlined.program.key, constants)),
        macs=outlined.program.macs,
        blocks=plan.blocks,
        schedule=plan.schedule,
        steps=plan.steps,
        caches=bool(plan.spans),
    )


@contextmanager
def as_dynamo_compiles() -> Iterator[None]:
    """What Dynamo holds while it compiles, for what is compiled later, in the middle of a run.

    Tracers replace parts of torch for the whole process: there may be one at a time, and calls
    of compiled models in other threads must know that there is one.
    """
    session = getattr(torch.compiler, "_compile_session_context", nullcontext)
    with torch._dynamo.convert_frame.compile_lock, session():
        yield
