"""Loading a plan bundle, and its first trajectory: run by `make bench`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from denoisers import Denoiser
from measure import follow, trajectory_timesteps

import deltapass

STEPS = 20
ROUNDS = 5


@pytest.fixture(scope="module")
def folder(denoiser: Denoiser, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle in ONNX of the model of `--model`."""
    pytest.importorskip("onnxruntime")
    path = tmp_path_factory.mktemp("bundle") / "bundle"
    deltapass.export(denoiser.model, *denoiser.inputs(999.0), path, steps=STEPS, verify=False)
    return path


@pytest.mark.benchmark(group="bundle")
def test_load(benchmark: Any, gate: Callable[[str], None], folder: Path) -> None:
    """From the folder to a model that can be called."""
    gate("bundle of tiny dit")
    benchmark.extra_info["bytes"] = sum(file.stat().st_size for file in folder.rglob("*.*"))
    benchmark.pedantic(deltapass.load, args=(folder,), rounds=ROUNDS, warmup_rounds=1)


@pytest.mark.benchmark(group="bundle")
def test_trajectory(
    benchmark: Any, gate: Callable[[str], None], folder: Path, denoiser: Denoiser
) -> None:
    """A warm trajectory of the loaded bundle."""
    gate("bundle of tiny dit")
    calls = [denoiser.inputs(timestep) for timestep in trajectory_timesteps(STEPS)]
    model = deltapass.load(folder)
    benchmark.pedantic(follow, args=(model, calls), rounds=ROUNDS, warmup_rounds=1)
