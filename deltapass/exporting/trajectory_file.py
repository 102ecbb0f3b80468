"""The input file of the C++ runner: a sample, the model's inputs, and the sampler as numbers.

Most samplers are linear: the next sample is a weighted sum of the present one and of the model's
outputs so far. The weights depend on the timesteps alone, so they can be found beforehand, by
letting the scheduler itself step on unit vectors.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

import torch

from deltapass.bundles.folder import file_written_aside
from deltapass.errors import ExportError
from deltapass.libraries import needs


@final
@dataclass(frozen=True, kw_only=True)
class LinearSampler:
    """A sampler as weights: x <- sample[i] * x + sum over j of output[i, j] * out_{i-j}.

    Shapes:
        T steps; timesteps (T,), sample (T,), output (T, T), all on the CPU.
    """

    timesteps: torch.Tensor
    sample: torch.Tensor
    output: torch.Tensor


def linear_sampler(scheduler: Any, steps: int) -> LinearSampler:
    """The weights of a scheduler of diffusers, which is not changed.

    Raises:
        ExportError: If it is not linear, draws noise, or scales the model's input.
    """
    scheduler = copy.deepcopy(scheduler)
    scheduler.set_timesteps(steps)
    timesteps = scheduler.timesteps
    if len(timesteps) != steps:
        raise ExportError(
            f"the scheduler steps {len(timesteps)} times for {steps} steps",
            "Give the number for which both agree",
        )
    _refuse_scaling(scheduler, timesteps)
    made = _weights(scheduler, timesteps, 1.0)
    scheduler.set_timesteps(steps)
    if not torch.allclose(2 * made, _weights(scheduler, timesteps, 2.0), rtol=1e-4, atol=1e-5):
        raise ExportError(
            f"{type(scheduler).__name__} is not linear, or draws noise",
            "Use one such as DDIM, DPM-Solver++ or flow-matching Euler, without thresholds",
        )
    return _stepwise(timesteps, made)


def _refuse_scaling(scheduler: Any, timesteps: torch.Tensor) -> None:
    """The runner hands the model the sample as it is."""
    scaling, unit = copy.deepcopy(scheduler), torch.ones(1, dtype=torch.float64)
    scale = getattr(scaling, "scale_model_input", lambda sample, _: sample)
    if any(not torch.equal(scale(unit, timestep), unit) for timestep in timesteps):
        raise ExportError(
            f"{type(scheduler).__name__} scales the sample before the model sees it",
            "Use one that does not, such as DDIM, DPM-Solver++ or flow-matching Euler",
        )


def _weights(scheduler: Any, timesteps: torch.Tensor, scale: float) -> torch.Tensor:
    """(T + 1, T + 1): every sample as weights of the first one and of all outputs."""
    steps = len(timesteps)
    units = scale * torch.eye(steps + 1, dtype=torch.float64)
    sample = units[0].view(1, 1, 1, -1)
    rows = [sample]
    for step, timestep in enumerate(timesteps):
        output = units[step + 1].view(1, 1, 1, -1)
        sample = scheduler.step(output, timestep, sample, return_dict=False)[0].double()
        rows.append(sample)
    return torch.cat(rows).view(steps + 1, steps + 1)


def _stepwise(timesteps: torch.Tensor, rows: torch.Tensor) -> LinearSampler:
    """From weights of the first sample to weights of the one before."""
    steps = len(timesteps)
    sample, output = torch.zeros(steps), torch.zeros(steps, steps)
    for step in range(steps):
        before, after = rows[step], rows[step + 1]
        kept = after[0] / before[0] if before[0] else after[0] * 0
        sample[step] = kept
        made = after - kept * before
        output[step, : step + 1] = made[1 : step + 2].flip(0)
    return LinearSampler(timesteps=timesteps.cpu(), sample=sample, output=output)


def write_trajectory(  # noqa: PLR0913 - what such a file holds
    path: str | Path,
    sample: torch.Tensor,
    sampler: LinearSampler,
    inputs: Mapping[str, torch.Tensor],
    *,
    timestep: str = "timestep",
    guidance: float | None = None,
) -> None:
    """Write the input file of the runner.

    Args:
        path: File to write.
        sample: The first sample, without the doubling of guidance.
        sampler: See `linear_sampler`.
        inputs: The model's other inputs, the same at every step; for guidance of both halves.
        timestep: Name of the model's timestep input, which is given one row a step.
        guidance: Strength of guidance; None for none.

    Shapes:
        sample (B, C, ...); inputs as the model takes them, 2 B with guidance.

    Raises:
        MissingLibraryError: If safetensors is not installed.
        ExportError: If `path` is a folder or cannot be written; a file that lies there stays then.
    """
    with needs("safetensors", "export"):
        from safetensors.torch import save_file
    with file_written_aside(Path(path)) as aside:
        tensors = _content(sample, sampler, inputs, timestep, guidance)
        save_file(tensors, str(aside))


def _content(
    sample: torch.Tensor,
    sampler: LinearSampler,
    inputs: Mapping[str, torch.Tensor],
    timestep: str,
    guidance: float | None,
) -> dict[str, torch.Tensor]:
    """What such a file holds, by name."""
    batch = len(sample) * (2 if guidance is not None else 1)
    times = sampler.timesteps.float()[:, None].expand(-1, batch)
    tensors = {
        "sample": sample,
        f"steps:{timestep}": times,
        "sampler.sample": sampler.sample,
        "sampler.output": sampler.output,
        **{f"input:{name}": value for name, value in inputs.items()},
    }
    if guidance is not None:
        tensors["guidance"] = torch.tensor(guidance)
    return {name: value.detach().cpu().clone().contiguous() for name, value in tensors.items()}
