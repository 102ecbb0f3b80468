"""What the benchmark scripts share: options, timing in turns, medians and records."""

from __future__ import annotations

import argparse
import datetime
import json
import platform
import statistics
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, Final

import torch
from denoisers import DENOISERS
from models.streams import Call

import deltapass
from deltapass.bench.environment import commit, hardware_of

TIMESTEPS: Final = 1000.0
DEVICE: Final = "cuda" if torch.cuda.is_available() else "cpu"
OPTIONS: Final[Mapping[str, dict[str, Any]]] = {
    "model": {"choices": DENOISERS, "default": "dit-xl-256"},
    "mode": {"help": "torch.compile mode of both, such as max-autotune-no-cudagraphs"},
    "device": {"default": DEVICE},
    "dtype": {"choices": ("float32", "bfloat16", "float16"), "default": "float32"},
    "steps": {"type": int, "default": 20},
    "save": {"type": Path, "help": "append the records to this JSON-lines file"},
}

# ---- options -------------------------------------------------------------------------------------


def arguments(
    description: str,
    *,
    without: Iterable[str] = (),
    given: Sequence[str] | None = None,
    **extra: dict[str, Any],
) -> argparse.Namespace:
    """The options every script takes but for those in `without`, and its own; or `given` words."""
    parser = argparse.ArgumentParser(description=description.splitlines()[0])
    shared = {name: how for name, how in OPTIONS.items() if name not in set(without)}
    for name, how in {**shared, **extra}.items():
        parser.add_argument(f"--{name}", **how)
    return parser.parse_args(given)


# ---- trajectories --------------------------------------------------------------------------------


def trajectory_timesteps(steps: int) -> list[float]:
    """Falling timesteps at even spacing, as a sampler hands them out."""
    return [TIMESTEPS * (1 - step / steps) - 1 for step in range(steps)]


@torch.no_grad()
def follow(model: Any, calls: Sequence[Call]) -> None:
    """One trajectory in a session of its own."""
    with deltapass.session(steps=len(calls)) as session:
        for step, (args, kwargs) in enumerate(calls):
            session.step(step)
            model(*args, **kwargs)


# ---- timing --------------------------------------------------------------------------------------


def seconds(run: Callable[[], Any], device: str = "cpu") -> float:
    """Wall-clock seconds of one call, device finished."""
    _wait(device)
    started = time.perf_counter()
    run()
    _wait(device)
    return time.perf_counter() - started


def _wait(device: str) -> None:
    if device.startswith("cuda"):
        torch.cuda.synchronize()


def in_turn(runs: Sequence[Callable[[], Any]], turn: int, device: str = "cpu") -> list[float]:
    """Seconds of each, one after the other; who goes first changes from turn to turn."""
    count = len(runs)
    order = [(turn + place) % count for place in range(count)]
    taken = {which: seconds(runs[which], device) for which in order}
    return [taken[which] for which in range(count)]


def median(values: Iterable[float], digits: int = 4) -> float:
    """The median, rounded."""
    return round(statistics.median(values), digits)


@dataclass
class Peak:
    """The highest memory, once it is known."""

    bytes: int = 0


@contextmanager
def peak_bytes_of(device: str = "cpu") -> Iterator[Peak]:
    """Bytes at the highest: of the device's allocator, or of this process by Linux's count."""
    peak, cuda = Peak(), device.startswith("cuda")
    if cuda:
        torch.cuda.reset_peak_memory_stats()
    else:
        Path("/proc/self/clear_refs").write_text("5")  # the highest so far is forgotten
    yield peak
    if cuda:
        peak.bytes = torch.cuda.max_memory_allocated()
    else:
        status = Path("/proc/self/status").read_text().splitlines()
        line = next(line for line in status if line.startswith("VmHWM"))
        peak.bytes = 1024 * int(line.split()[1])


# ---- records -------------------------------------------------------------------------------------


def record(args: argparse.Namespace, results: dict[str, Any], *, unit: str = "seconds") -> None:
    """Print a result as JSON with what it depends on; append it where --save says.

    Args:
        args: The options; `seed` and `rounds` are noted apart where there are such.
        results: Numbers by name.
        unit: Of those whose names do not end in one.
    """
    entry = {**circumstances(args), "unit": unit, **results}
    print(json.dumps(entry, indent=1))
    if args.save:
        with args.save.open("a") as file:
            file.write(json.dumps(entry) + "\n")


def circumstances(args: argparse.Namespace) -> dict[str, Any]:
    """What numbers depend on: code, versions, device and options."""
    return {
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "commit": commit(),
        **{name: metadata.version(name) for name in ("deltapass", "torch", "diffusers")},
        "python": platform.python_version(),
        "device": args.device,
        "hardware": hardware_of(args.device),
        "threads": torch.get_num_threads(),
        "seed": getattr(args, "seed", 0),
        "repeats": getattr(args, "rounds", 1),
        "options": {k: str(v) for k, v in vars(args).items() if k != "save" and v is not None},
    }
