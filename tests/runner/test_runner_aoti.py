"""The runner with AOTInductor: a bundle of ours, and blocks that share one .pt2.

It compiles for about two minutes: `pytest tests/runner/test_runner_aoti.py -m slow`.
"""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from models import B, C, T, noise
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch._inductor import aot_compile
from torch._inductor.package import package_aoti

import deltapass
from deltapass.exporting.trajectory_file import write_trajectory

STEPS = 4
OPTIONS = {
    "aot_inductor.package": True,
    "aot_inductor.package_constants_in_so": False,
    # Else vectors of up to eight numbers become part of the code, which both blocks share.
    "always_keep_tensor_constants": True,
}


class Block(nn.Module):
    """One residual block, with a vector short enough to be compiled in."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        """X plus what the block adds at time t."""
        return x + torch.tanh(self.linear(x)) * t[:, None, None]


def compile_block(block: Block, path: Path, options: dict[str, Any]) -> None:
    batch = torch.export.Dim("batch", min=1, max=8)
    example = (torch.randn(3, 2, 4), torch.randn(3))
    exported = torch.export.export(block, example, dynamic_shapes=({0: batch}, {0: batch}))
    package_aoti(str(path), {"model": aot_compile(exported.module(), example, options=options)})


def described(path: Path) -> dict[str, Any]:
    content = path.read_bytes()
    return {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}


def write_bundle(folder: Path, blocks: list[Block], options: dict[str, Any]) -> None:
    folder.mkdir()
    compile_block(blocks[0], folder / "block.pt2", options)
    weights = {f"{i}.{k}": v for i, b in enumerate(blocks) for k, v in b.state_dict().items()}
    save_file(weights, folder / "weights.safetensors")
    names = list(blocks[0].state_dict())
    segment = {"file": "block.pt2", "inputs": ["x", "t"], "outputs": ["y"]}
    segments = [
        segment | {"name": f"block_{i}", "weights": {name: f"{i}.{name}" for name in names}}
        for i in range(len(blocks))
    ]
    calls = [
        {"segment": "block_0", "inputs": ["x", "t"], "outputs": ["h1"]},
        {"segment": "block_1", "inputs": ["h1", "t"], "outputs": ["out"]},
    ]
    refresh = {"name": "refresh", "kind": "refresh", "calls": calls, "results": ["out"]}
    stream = {"dtype": "float32", "shape": ["batch", 2, 4]}
    row = {"variant": "refresh", "reads": [], "weights": [], "branches": {}, "fit": None}
    plan = {"schema": 2, "format": "aoti", "taken": 0, "dimensions": {"batch": [1, 8]}}
    plan |= {"segments": segments, "variants": [refresh | {"deltas": [], "macs": {}}]}
    plan |= {"values": {"h1": stream, "out": stream}, "table": [row] * STEPS}
    plan["files"] = {path.name: described(path) for path in folder.iterdir()}
    plan["inputs"] = [
        {"name": "x", "role": "sample"} | stream,
        {"name": "t", "role": "timestep", "dtype": "float32", "shape": ["batch"]},
    ]
    (folder / "plan.json").write_text(json.dumps(plan))


@pytest.fixture(scope="session")
def runner(tmp_path_factory: pytest.TempPathFactory) -> Path:
    build = tmp_path_factory.mktemp("runner")
    settings = ["-DWITH_AOTI=ON", "-DWITH_ONNX=OFF", f"-DPython3_EXECUTABLE={sys.executable}"]
    source = Path(__file__).parents[2] / "runner"
    subprocess.run(["cmake", "-S", source, "-B", build, *settings], check=True)
    subprocess.run(["cmake", "--build", build], check=True)
    return build / "runner"


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")
@pytest.mark.parametrize("kept", [True, False], ids=["bound", "compiled in"])
@torch.no_grad()
def test_blocks_share_a_file_and_not_their_weights(
    runner: Path, tmp_path: Path, kept: bool
) -> None:
    blocks = [Block().eval(), Block().eval()]
    options = OPTIONS | {"always_keep_tensor_constants": kept}
    write_bundle(tmp_path / "bundle", blocks, options)
    given = {"sample": torch.randn(5, 2, 4), "steps:t": torch.rand(STEPS, 5)}
    given |= {"sampler.sample": torch.rand(STEPS), "sampler.output": torch.rand(STEPS, 1)}
    save_file(given, tmp_path / "in.safetensors")
    paths = [tmp_path / name for name in ("bundle", "in.safetensors", "out.safetensors")]
    done = subprocess.run([runner, *paths], capture_output=True, text=True, check=False)
    if not kept:
        assert done.returncode == 1
        assert "takes 1 of 2 weights, others are compiled in" in done.stderr
        return
    x = given["sample"]
    for i in range(STEPS):
        out = blocks[1](blocks[0](x, given["steps:t"][i]), given["steps:t"][i])
        x = given["sampler.sample"][i] * x + given["sampler.output"][i, 0] * out
    assert done.returncode == 0, done.stderr
    torch.testing.assert_close(load_file(paths[2])["sample"], x)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")
@pytest.mark.parametrize(("name", "predictor"), [("adaln", "reuse"), ("two_stream", "chebyshev")])
def test_an_exported_bundle_gives_what_python_gives(
    runner: Path, name: str, predictor: str, tmp_path: Path
) -> None:
    pytest.importorskip("diffusers")
    from runner_case import bundle, in_python, sampler

    schedule = deltapass.Schedule(predictor=predictor)
    folder, inputs = bundle(tmp_path, name, schedule, format="aoti")
    start, paths = noise(5, B, T, C), [tmp_path / f"{name}.safetensors" for name in ("in", "out")]
    write_trajectory(paths[0], start, sampler(), inputs)
    done = subprocess.run([runner, folder, *paths], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    ours = load_file(paths[1])["sample"]
    torch.testing.assert_close(ours, torch.from_numpy(in_python(folder, start, inputs)[0]))
    shown = [step["variant"] for step in json.loads(done.stdout)["steps"]]
    assert any(variant.startswith("cached") for variant in shown)
