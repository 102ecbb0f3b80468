"""A scheduler as weights: the same samples as the scheduler itself gives."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from models import noise

diffusers = pytest.importorskip("diffusers")

from safetensors.torch import load_file  # noqa: E402 - comes with diffusers

from deltapass.errors import ExportError  # noqa: E402
from deltapass.exporting.trajectory_file import linear_sampler, write_trajectory  # noqa: E402

# diffusers' schedulers make arrays of tensors in a way that newer numpy warns of.
pytestmark = [
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:__array_wrap__ must accept:DeprecationWarning"),
]

LINEAR: dict[str, Any] = {
    "euler": diffusers.FlowMatchEulerDiscreteScheduler,
    "ddim": lambda: diffusers.DDIMScheduler(clip_sample=False),
    "dpm": diffusers.DPMSolverMultistepScheduler,
    "dpm, flow": lambda: diffusers.DPMSolverMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True
    ),
    "deis": diffusers.DEISMultistepScheduler,
}


@pytest.mark.parametrize("steps", [1, 2, 20])
@pytest.mark.parametrize("name", LINEAR)
def test_weights_give_the_samples_of_the_scheduler(name: str, steps: int) -> None:
    scheduler = LINEAR[name]()
    weights = linear_sampler(scheduler, steps)
    outputs = [noise(step, 2, 4, 8, 8) for step in range(steps)]
    theirs = ours = noise(99, 2, 4, 8, 8)
    scheduler.set_timesteps(steps)
    assert torch.equal(weights.timesteps, scheduler.timesteps)
    for step, timestep in enumerate(scheduler.timesteps):
        theirs = scheduler.step(outputs[step], timestep, theirs, return_dict=False)[0]
        history = reversed(outputs[: step + 1])
        ours = weights.sample[step] * ours
        for weight, output in zip(weights.output[step], history, strict=False):
            ours = ours + weight * output
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


def test_scheduler_is_left_as_it_was() -> None:
    scheduler = LINEAR["dpm"]()
    scheduler.set_timesteps(7)
    before = scheduler.timesteps.clone()
    linear_sampler(scheduler, 20)
    assert torch.equal(scheduler.timesteps, before)


@pytest.mark.parametrize(
    "make",
    [
        lambda: diffusers.DDPMScheduler(clip_sample=False),
        lambda: diffusers.DDIMScheduler(clip_sample=True),
    ],
    ids=["ddpm", "clipped"],
)
def test_noise_and_clipping_are_refused(make: Any) -> None:
    with pytest.raises(ExportError, match="not linear, or draws noise"):
        linear_sampler(make(), 10)


@pytest.mark.parametrize(
    "make", [diffusers.EulerDiscreteScheduler, diffusers.EulerAncestralDiscreteScheduler]
)
def test_samplers_that_scale_what_the_model_sees_are_refused(make: Any) -> None:
    with pytest.raises(ExportError, match="scales the sample before the model sees it"):
        linear_sampler(make(), 10)


def test_schedulers_that_step_oftener_than_asked_are_refused() -> None:
    with pytest.raises(ExportError, match=r"steps 19 times for 10 steps"):
        linear_sampler(diffusers.HeunDiscreteScheduler(), 10)


def test_file_holds_what_the_runner_reads(tmp_path: Path) -> None:
    weights = linear_sampler(LINEAR["euler"](), 4)
    labels = torch.tensor([1, 2, 9, 9])
    path = tmp_path / "in.safetensors"
    write_trajectory(path, noise(0, 2, 1, 4, 4), weights, {"labels": labels}, guidance=2.0)
    found = load_file(path)
    assert found["steps:timestep"].shape == (4, 4)  # steps, both halves of two samples
    assert torch.equal(found["steps:timestep"][:, 0], weights.timesteps.float())
    assert torch.equal(found["input:labels"], labels)
    assert found["guidance"].item() == 2.0
    assert found["sampler.output"].shape == (4, 4)


def test_where_nothing_can_be_written_is_one_error_and_loses_nothing(tmp_path: Path) -> None:
    weights = linear_sampler(LINEAR["euler"](), 2)
    old = tmp_path / "old.safetensors"
    write_trajectory(old, noise(0, 1, 4, 2, 2), weights, {})
    before = old.read_bytes()
    for place, text in ((old / "new", "cannot be written"), (tmp_path, "is a folder, and")):
        with pytest.raises(ExportError, match=text):
            write_trajectory(place, noise(0, 1, 4, 2, 2), weights, {})
    with pytest.raises(AttributeError):
        write_trajectory(old, noise(0, 1, 4, 2, 2), weights, {"text": "no tensor"})  # type: ignore[dict-item]
    assert old.read_bytes() == before and list(tmp_path.iterdir()) == [old]
