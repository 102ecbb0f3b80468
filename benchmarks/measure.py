"""Timing and records shared by the benchmark scripts."""

from __future__ import annotations

import argparse
import datetime
import json
import platform
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from denoisers import DENOISERS

TIMESTEPS = 1000.0


def arguments(description: str, **extra: dict[str, Any]) -> argparse.Namespace:
    """The options every script takes, and its own."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--model", choices=DENOISERS, default="dit-xl-256")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--dtype", choices=("float32", "bfloat16", "float16"), default="float32")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument(
        "--mode", help="torch.compile mode of both, such as max-autotune-no-cudagraphs"
    )
    parser.add_argument("--save", type=Path, help="append the record to this JSON-lines file")
    for name, options in extra.items():
        parser.add_argument(f"--{name}", **options)
    return parser.parse_args()


def trajectory_timesteps(steps: int) -> list[float]:
    """Falling timesteps at even spacing, as a sampler hands them out."""
    return [TIMESTEPS * (1 - step / steps) - 1 for step in range(steps)]


def seconds(run: Callable[[], Any], device: str) -> float:
    """Wall-clock seconds of one call, device finished."""
    _wait(device)
    started = time.perf_counter()
    run()
    _wait(device)
    return time.perf_counter() - started


def _wait(device: str) -> None:
    if device.startswith("cuda"):
        torch.cuda.synchronize()


def record(args: argparse.Namespace, results: dict[str, Any]) -> None:
    """Print a result as JSON with what it depends on; append it where --save says."""
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False
    )
    entry = {
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "commit": commit.stdout.strip(),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "hardware": hardware(args.device),
        "threads": torch.get_num_threads(),
        "options": {k: str(v) for k, v in vars(args).items() if k != "save" and v is not None},
        **results,
    }
    print(json.dumps(entry, indent=1))
    if args.save:
        with args.save.open("a") as file:
            file.write(json.dumps(entry) + "\n")


def hardware(device: str) -> str:
    """Name of the device the numbers belong to."""
    if device.startswith("cuda"):
        return torch.cuda.get_device_name()
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return f"{torch.get_num_threads()} threads of {line.split(':')[1].strip()}"
    return platform.processor()
