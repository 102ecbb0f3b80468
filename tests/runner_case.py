"""One trajectory for the C++ runner and for Python: a toy's bundle, a sampler, a loop."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import torch
from models import B, D, S, make, noise

import deltapass
from deltapass.exporting.trajectory_file import LinearSampler, linear_sampler

STEPS = 8


def bundle(folder: Path, name: str, schedule: Any, **options: Any) -> tuple[Path, dict[str, Any]]:
    """A toy's bundle, and its inputs besides sample and timestep."""
    model = make(name)
    args, kwargs = model.inputs(999.0, 0)
    options = {"schedule": schedule, "steps": STEPS, "batch": (1, 4)} | options
    deltapass.export(model, args, kwargs, folder / "bundle", **options)
    text = {"encoder_hidden_states": noise(1, B, S, D)} if name == "two_stream" else {}
    return folder / "bundle", text


def sampler() -> LinearSampler:
    scheduler = diffusers.DPMSolverMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True
    )
    return linear_sampler(scheduler, STEPS)


def in_python(
    folder: Path, start: torch.Tensor, inputs: dict[str, Any], **engine: Any
) -> tuple[np.ndarray, list[int]]:
    """The same trajectory through `load`; the sampler in float32, in the runner's order.

    Gives the last sample, and the bytes of the deltas held after every step.
    """
    model, weights = deltapass.load(folder, **engine), sampler()
    sample, outputs, held = start.numpy(), [], []
    with torch.no_grad(), deltapass.session(steps=STEPS) as session:
        for step, time in enumerate(weights.timesteps):
            session.step(step)
            times = time.float().expand(len(start)).contiguous()
            outputs.insert(0, model(torch.from_numpy(sample), times, **inputs).numpy())
            held.append(session.nbytes)
            sample = weights.sample[step].numpy() * sample
            for weight, output in zip(weights.output[step].numpy(), outputs, strict=False):
                sample = sample + weight * output
        assert session.report().as_planned
    return sample, held
