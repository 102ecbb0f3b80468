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
from models import B, C, T, noise

pytest.importorskip("onnxruntime")
pytest.importorskip("diffusers")

from runner_case import STEPS, bundle, in_python, sampler
from safetensors.torch import load_file, save_file

import deltapass
from deltapass.exporting.trajectory_file import write_trajectory
from deltapass.schedule.weights import Weights

RUNNER = Path(__file__).parents[2] / "build" / "runner" / "runner"

pytestmark = [
    pytest.mark.skipif(not RUNNER.is_file(), reason="`make runner` has not built it"),
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning"),
]


FRONT, REAR = deltapass.Span(0, 3), deltapass.Span(3, 5)  # both of two streams
ROWS = (None, None, REAR, None, REAR, REAR, None, FRONT)
OWN = {
    4: Weights(shared=((1.6, -0.8, 0.3), (1.2, -0.1, 0.0))),
    5: Weights(shared=((1.9, -1.1, 0.3),), branches=(("cond", ((1.0, 0.0, 0.0),)),)),
    7: Weights(shared=((0.7,),)),
}
WEIGHED = deltapass.ExplicitSchedule(
    ROWS, predictor="linear", weights=tuple(OWN.get(step) for step in range(STEPS))
)
RULES = ("reuse", "linear", "quadratic", "adams-bashforth", "chebyshev")


@pytest.mark.parametrize(
    ("name", "schedule"),
    [("adaln", deltapass.Schedule()), ("two_stream", WEIGHED)]
    + [("two_stream", deltapass.Schedule(predictor=rule)) for rule in RULES[1:]],
    ids=[RULES[0], "weights", *RULES[1:]],
)
def test_runner_gives_the_bits_of_python(name: str, schedule: Any, tmp_path: Path) -> None:
    folder, inputs = bundle(tmp_path, name, schedule)
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
    theirs, held = in_python(folder, start, inputs, threads=1)
    assert np.array_equal(ours, theirs)
    assert [step["delta_bytes"] for step in json.loads(done.stdout)["steps"]] == held
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
    made, inputs = bundle(folder, "adaln", deltapass.Schedule())
    write_trajectory(folder / "in.safetensors", noise(5, B, T, C), sampler(), inputs)
    return made, folder / "in.safetensors"


def copied(bundle: Path, to: Path) -> tuple[Path, dict[str, Any]]:
    """A bundle to change, and its plan."""
    folder = to / "bundle"
    shutil.copytree(bundle, folder)
    return folder, json.loads((folder / "plan.json").read_text())


@pytest.mark.parametrize("name", ["../other/prologue.onnx", "/tmp/prologue.onnx"])
def test_files_outside_the_bundle_are_not_opened(
    name: str, small: tuple[Path, Path], tmp_path: Path
) -> None:
    folder, plan = copied(small[0], tmp_path)
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
    folder, plan = copied(small[0], tmp_path)
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
