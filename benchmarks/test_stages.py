"""The stages before lowering, on DiT-XL/2 without its weights: run by `make bench`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
from denoisers import DENOISERS

from deltapass.compiler.blocks import find_blocks
from deltapass.compiler.capture import capture
from deltapass.compiler.outline import Outline, outline
from deltapass.compiler.plan import Plan, make_plan
from deltapass.compiler.rewrite import cached_program, refresh_program
from deltapass.compiler.tracing import trace
from deltapass.graph.program import Captured
from deltapass.schedule.presets import delta_dit

STEPS = 20
ROUNDS = 3


class Stages(NamedTuple):
    """What each stage gives, and so the next takes."""

    model: torch.nn.Module
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    traced: tuple[torch.fx.GraphModule, Any]
    captured: Captured
    outlined: Outline
    plan: Plan


@pytest.fixture(scope="module")
def stages() -> Stages:
    denoiser = DENOISERS["dit-xl-256"]("meta", torch.float32)
    args, kwargs = denoiser.inputs(999.0)
    traced = trace(denoiser.model, args, kwargs)
    captured = capture(*traced)
    outlined = outline(captured, find_blocks(captured))
    plan = make_plan(outlined, delta_dit(), steps=STEPS)
    return Stages(denoiser.model, args, kwargs, traced, captured, outlined, plan)


def rewrite(plan: Plan) -> None:
    """All variants of a plan."""
    program, spans = plan.outline.program, list(plan.spans.values())
    refresh_program(program, spans)
    for span in spans:
        cached_program(program, span)


STAGES: dict[str, Callable[[Stages], Any]] = {
    "trace": lambda s: trace(s.model, s.args, s.kwargs),
    "capture": lambda s: capture(*s.traced),
    "find_blocks": lambda s: find_blocks(s.captured),
    "outline": lambda s: outline(s.captured, s.outlined.stack),
    "plan": lambda s: make_plan(s.outlined, delta_dit(), steps=STEPS),
    "rewrite": lambda s: rewrite(s.plan),
}


@pytest.mark.benchmark(group="stages, DiT-XL/2")
@pytest.mark.parametrize("name", STAGES)
def test_stage(benchmark: Any, gate: Callable[[str], None], stages: Stages, name: str) -> None:
    """One stage."""
    gate("plan of dit-xl-256")
    benchmark.pedantic(STAGES[name], args=(stages,), rounds=ROUNDS, warmup_rounds=1)
