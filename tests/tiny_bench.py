"""A tiny pipeline, and jobs of the benchmark suite on it: seconds, and no Inductor.

Import this module only behind `pytest.importorskip("diffusers")`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from diffusers import DiTTransformer2DModel, DPMSolverMultistepScheduler

from deltapass.bench.environment import Environment
from deltapass.bench.running.job import Job, prepared
from deltapass.bench.subjects import Dealt, Subject, pipeline_subject
from deltapass.bench.suite import MethodSpec, Suite
from deltapass.demo.embedded import ClassConditionalPipeline

EAGER = Environment(lowering="eager", batch=2)
BLOCKS, STEPS = 4, 6
METHODS = (
    MethodSpec(name="plain"),
    MethodSpec(name="plain", steps=4),
    MethodSpec(name="interval-1"),
    MethodSpec(name="delta-dit", settings={"speedup": 1.3}),
)


def tiny_pipeline() -> ClassConditionalPipeline:
    """Four blocks, 8 x 8 pixels, three classes, the same weights every time."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = DiTTransformer2DModel(
            num_attention_heads=2,
            attention_head_dim=8,
            in_channels=1,
            out_channels=1,
            num_layers=BLOCKS,
            sample_size=8,
            patch_size=2,
            num_embeds_ada_norm=3,
        )
    flows = {"prediction_type": "flow_prediction", "use_flow_sigmas": True}
    return ClassConditionalPipeline(model, DPMSolverMultistepScheduler(**flows))


def made() -> tuple[Any, dict[str, Any]]:
    """A factory, for the command line."""
    return tiny_pipeline(), {"class_labels": [0, 1, 2], "guidance_scale": 2.0}


def tiny_subject() -> Subject:
    """The pipeline as a subject."""
    return pipeline_subject("tiny_bench:made", made(), EAGER, Dealt())


def tiny_suite(**fields: Any) -> Suite:
    """A suite of seconds."""
    small: dict[str, Any] = {
        "name": "tiny",
        "title": "Tiny",
        "question": "Does it run?",
        "methods": METHODS,
        "steps": STEPS,
        "images": 2,
        "measures": ("psnr",),
        "fine_steps": 0,
        "timed": 2,
        "rounds": 1,
    }
    return Suite(**{**small, **fields})


def tiny_job(output: Path, rows: tuple[str, ...] = (), **fields: Any) -> Job:
    """The suite on the subject."""
    return prepared(tiny_suite(**fields), EAGER, tiny_subject(), output, rows)
