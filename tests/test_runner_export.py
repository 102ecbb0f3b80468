"""The C++ runner on bundles that export really wrote: the bits that Python gives."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from models import B, C, D, S, T, make, noise

pytest.importorskip("onnxruntime")
diffusers = pytest.importorskip("diffusers")

from safetensors.torch import load_file, save_file  # noqa: E402 - comes with diffusers

import deltapass  # noqa: E402
from deltapass.trajectory_file import LinearSampler, linear_sampler, write_trajectory  # noqa: E402

RUNNER = Path(__file__).parents[1] / "build" / "runner" / "runner"
STEPS = 8

pytestmark = [
    pytest.mark.skipif(not RUNNER.is_file(), reason="`make runner` has not built it"),
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning"),
]


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


# ---- what it refuses ------------------------------------------------------------------------


def refused(folder: Path, given: Path) -> str:
    done = subprocess.run(
        [RUNNER, folder, given, folder / "out"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    return done.stderr


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A bundle and an input that fits it."""
    folder = tmp_path_factory.mktemp("small")
    made, inputs = bundle(folder, "adaln", 0)
    write_trajectory(folder / "in.safetensors", noise(5, B, T, C), sampler(), inputs)
    return made, folder / "in.safetensors"


@pytest.mark.parametrize("name", ["../other/prologue.onnx", "/tmp/prologue.onnx"])
def test_files_outside_the_bundle_are_not_opened(
    name: str, small: tuple[Path, Path], tmp_path: Path
) -> None:
    folder = tmp_path / "bundle"
    shutil.copytree(small[0], folder)
    plan = json.loads((folder / "plan.json").read_text())
    plan["segments"][0]["file"] = name
    (folder / "plan.json").write_text(json.dumps(plan))
    assert "not among the plan's files" in refused(folder, small[1])
    plan["files"][name] = {"bytes": 1, "sha256": "0" * 64}
    (folder / "plan.json").write_text(json.dumps(plan))
    assert "lies outside the bundle" in refused(folder, small[1])


@pytest.mark.parametrize(
    "formula", ["(" * 100_000, "9" * 30, "(0-9223372036854775807-1)//(0-1)", "batch % (0-1)"]
)
def test_formulas_that_would_break_it_are_refused(
    formula: str, small: tuple[Path, Path], tmp_path: Path
) -> None:
    folder = tmp_path / "bundle"
    shutil.copytree(small[0], folder)
    plan = json.loads((folder / "plan.json").read_text())
    for segment in plan["segments"]:
        for value in segment["values"].values():
            value["shape"] = [formula, *value["shape"][1:]]
    for value in (*plan["values"].values(), plan["inputs"][0]):
        value["shape"] = [formula, *value["shape"][1:]]
    (folder / "plan.json").write_text(json.dumps(plan))
    assert refused(folder, small[1])


@pytest.mark.parametrize("shape", [(STEPS, 2), (STEPS, 1, 1)])
def test_a_sampler_of_another_rank_is_refused(
    shape: tuple[int, ...], small: tuple[Path, Path], tmp_path: Path
) -> None:
    tensors = load_file(small[1])
    tensors["sampler.sample"] = torch.ones(shape)
    save_file(tensors, tmp_path / "in.safetensors")
    assert "a number a step" in refused(small[0], tmp_path / "in.safetensors")


def test_a_header_whose_sizes_overflow_is_refused(small: tuple[Path, Path], tmp_path: Path) -> None:
    content = small[1].read_bytes()
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    end = len(content) - 8 - length
    header["sampler.sample"].update(shape=[STEPS, 2**40, 2**24], data_offsets=[end, end])
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    broken = tmp_path / "in.safetensors"
    broken.write_bytes(len(text).to_bytes(8, "little") + text + content[8 + length :])
    assert "sizes that memory can hold" in refused(small[0], broken)
