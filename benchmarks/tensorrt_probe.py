"""One minute: does TensorRT, of whichever flavour is installed, run on this GPU?

`python benchmarks/tensorrt_probe.py` builds an engine of one small block in every way this
project would, loads it, runs it and compares it with torch. One JSON line a way, which says what
refused.
"""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from deltapass.backends.tensorrt.build import Range, Settings, build
from deltapass.backends.tensorrt.library import Library, load_library
from deltapass.backends.tensorrt.run import Workspace, cuda_device, load_segment
from torch.nn import functional as F

from deltapass.errors import DeltapassError

TOKENS, WIDTH, RUNS = 256, 512, 20
TYPES = {torch.float32: 1e-4, torch.float16: 1e-2, torch.bfloat16: 5e-2}  # allowed difference


def save_block(path: Path, dtype: torch.dtype) -> Callable[[torch.Tensor], torch.Tensor]:
    """Write h = x + gelu(x @ w) as ONNX; the same in torch."""
    import onnx
    from onnx import helper

    code = {torch.float32: 1, torch.float16: 10, torch.bfloat16: 16}[dtype]
    w = (torch.randn(WIDTH, WIDTH, generator=torch.Generator().manual_seed(0)) / 20).to(dtype)
    raw = w.view(torch.uint8).numpy().tobytes()
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["a"]),
        helper.make_node("Gelu", ["a"], ["b"]),
        helper.make_node("Add", ["x", "b"], ["h"]),
    ]
    values = [helper.make_tensor_value_info(name, code, [TOKENS, WIDTH]) for name in "xh"]
    held = helper.make_tensor("w", code, [WIDTH, WIDTH], raw, raw=True)
    graph = helper.make_graph(nodes, "block", values[:1], values[1:], [held])
    opset = [helper.make_opsetid("", 20)]
    onnx.save(helper.make_model(graph, opset_imports=opset, ir_version=10), str(path))
    on_gpu = w.cuda()
    return lambda x: x + F.gelu(x @ on_gpu)


def probe(library: Library, dtype: torch.dtype, architectures: tuple[str, ...] | None) -> Any:
    """Build, load, run, compare."""
    found: dict[str, Any] = {"type": str(dtype), "architectures": architectures, "stage": "build"}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "block.onnx"
        eager = save_block(path, dtype)
        try:
            ranges = {"x": Range.fixed((TOKENS, WIDTH))}
            built = build(path, ranges, Settings(architectures=architectures), library)
            found.update(build_s=built.seconds, bytes=len(built.engine), stage="load")
            device = cuda_device(library)
            run = load_segment(built.engine, library, device, workspace=Workspace(device))
            found["stage"] = "run"
            x = torch.randn(TOKENS, WIDTH, device="cuda").to(dtype)
            found.update(compare(run, eager, x), stage="done")
            found["right"] = found["difference"] <= TYPES[dtype]
        except (DeltapassError, RuntimeError) as error:
            found["refused"] = f"{type(error).__name__}: {error}"
    return found


def compare(run: Any, eager: Any, x: torch.Tensor) -> dict[str, float]:
    """The difference from torch, against its largest value; and milliseconds of both."""
    expected, (actual,) = eager(x).float(), run(x)
    torch.cuda.synchronize()
    difference = (actual.float() - expected).abs().max() / expected.abs().max()
    timed = {name: milliseconds(call, x) for name, call in (("engine", run), ("torch", eager))}
    return {"difference": float(difference), **{f"{name}_ms": at for name, at in timed.items()}}


def milliseconds(call: Any, x: torch.Tensor) -> float:
    started = time.perf_counter()
    for _ in range(RUNS):
        call(x)
    torch.cuda.synchronize()
    return (time.perf_counter() - started) * 1e3 / RUNS


def main() -> None:
    library = load_library()
    cuda_device(library)  # says what is missing, if it is
    print(
        json.dumps(
            {
                "library": f"{library.flavour} {library.version}",
                "builds_for": library.architectures,
                "gpu": torch.cuda.get_device_name(),
                "capability": torch.cuda.get_device_capability(),
                "torch": torch.__version__,
            }
        )
    )
    portable = tuple(name for name in library.architectures if name != "SM75")
    for architectures in (None, portable) if portable else (None,):
        for dtype in TYPES:
            print(json.dumps(probe(library, dtype, architectures)), flush=True)


if __name__ == "__main__":
    main()
