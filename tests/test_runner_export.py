"""The C++ runner on bundles that export really wrote: the bits that Python gives."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from models import B, C, D, S, T, make, noise

pytest.importorskip("onnxruntime")
diffusers = pytest.importorskip("diffusers")

from safetensors.torch import load_file  # noqa: E402 - comes with diffusers

import deltapass  # noqa: E402
from deltapass.trajectory_file import LinearSampler, linear_sampler, write_trajectory  # noqa: E402

RUNNER = Path(__file__).parents[1] / "build" / "runner" / "runner"
STEPS = 8

pytestmark = pytest.mark.skipif(not RUNNER.is_file(), reason="`make runner` has not built it")


def bundle(folder: Path, name: str, order: int) -> tuple[Path, dict[str, torch.Tensor]]:
    """A toy's bundle, and its inputs besides sample and timestep."""
    model = make(name)
    args, kwargs = model.inputs(999.0, 0)
    deltapass.export(model, args, kwargs, folder / "bundle", order=order, steps=STEPS, batch=(1, 4))
    text = {"encoder_hidden_states": noise(1, B, S, D)} if name == "two_stream" else {}
    return folder / "bundle", text


def sampler() -> LinearSampler:
    scheduler = diffusers.DPMSolverMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True
    )
    return linear_sampler(scheduler, STEPS)


def in_python(folder: Path, start: torch.Tensor, inputs: dict[str, Any]) -> np.ndarray:
    """The same trajectory through `load`; the sampler in float32, in the runner's order."""
    model, weights = deltapass.load(folder, threads=1), sampler()
    sample, outputs = start.numpy(), []
    with torch.no_grad(), deltapass.session(steps=STEPS) as session:
        for step, time in enumerate(weights.timesteps):
            session.step(step)
            times = time.float().expand(len(start)).contiguous()
            outputs.insert(0, model(torch.from_numpy(sample), times, **inputs).numpy())
            sample = weights.sample[step].numpy() * sample
            for weight, output in zip(weights.output[step].numpy(), outputs, strict=False):
                sample = sample + weight * output
        assert session.report().as_planned
    return sample


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
@pytest.mark.parametrize(("name", "order"), [("adaln", 0), ("two_stream", 1)])
def test_runner_gives_the_bits_of_python(name: str, order: int, tmp_path: Path) -> None:
    folder, inputs = bundle(tmp_path, name, order)
    start = noise(5, B, T, C)
    given, result = tmp_path / "in.safetensors", tmp_path / "out.safetensors"
    write_trajectory(given, start, sampler(), inputs)
    done = subprocess.run(
        [RUNNER, folder, given, result, "--threads", "1"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    ours = load_file(result)["sample"].numpy()
    assert np.array_equal(ours, in_python(folder, start, inputs))
    table = json.loads((folder / "plan.json").read_text())["table"]
    shown = [step["variant"] for step in json.loads(done.stdout)["steps"]]
    assert shown == [row["variant"] for row in table]
    assert any(name.startswith("cached") for name in shown)
