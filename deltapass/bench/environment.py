"""Where it is measured: an environment file, and all that numbers depend on there."""

from __future__ import annotations

import os
import platform
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any, Final, final

import msgspec
import torch

from deltapass.bench.files import read_toml
from deltapass.demo.machine import processor
from deltapass.errors import BenchError
from deltapass.options import LOWERING_NAMES

DTYPES: Final = ("float32", "bfloat16", "float16")
VERSIONS: Final = ("deltapass", "torch", "diffusers", "transformers", "cache-dit", "triton")
MEMORY: Final = Path("/proc/meminfo")


@final
class Environment(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """An environment file.

    Attributes:
        name: Of the machine, as pages show it; else what it is made of.
        threads: Of torch; else as many as it takes by itself.
        device: "cpu", "cuda", "cuda:1".
        dtype: That models run in.
        lowering: Of what is timed; images that are judged are drawn on "eager" unless `draw_on`.
        draw_on: Lowering of the images that are judged.
        batch: Images that are drawn and kept together; else 25 of the embedded models, 1 of others.
        real: Folder with real images, for models that are not ours.
        data: Where data sets, trained judges and features are kept; else beside the results.
    """

    name: str | None = None
    threads: int | None = None
    device: str = "cpu"
    dtype: str = "float32"
    lowering: str = "inductor"
    draw_on: str = "eager"
    batch: int | None = None
    real: str | None = None
    data: str | None = None

    @property
    def torch_dtype(self) -> torch.dtype:
        """The type as torch's."""
        found: torch.dtype = getattr(torch, self.dtype)
        return found


def read_environment(path: Path | None, **given: Any) -> Environment:
    """What a file says, and what the command line says instead of it; None there says nothing.

    Raises:
        BenchError: If the file or a value has no meaning, or the device is not there.
    """
    found = Environment() if path is None else read_toml(path, Environment, "environment")
    found = msgspec.structs.replace(found, **{n: v for n, v in given.items() if v is not None})
    _check(found)
    return found


def _check(environment: Environment) -> None:
    for name, valid in (
        ("dtype", DTYPES),
        ("lowering", LOWERING_NAMES),
        ("draw_on", LOWERING_NAMES),
    ):
        if getattr(environment, name) not in valid:
            fact = f"environment: {name} is {getattr(environment, name)!r}"
            raise BenchError(fact, f"Give one of {', '.join(valid)}")
    for name in ("threads", "batch"):
        if (value := getattr(environment, name)) is not None and value < 1:
            raise BenchError(f"environment: {name} is {value}", "Give a whole number from 1 on")
    if environment.device.startswith("cuda") and not torch.cuda.is_available():
        raise BenchError(
            f"environment: device is {environment.device!r}, and torch sees no CUDA device",
            "Give --device cpu, or a torch that was built for your GPU",
        )


def facts(environment: Environment) -> dict[str, Any]:
    """All that numbers depend on besides the code: the record's environment."""
    hardware = hardware_of(environment.device)
    return {
        "name": environment.name or hardware,
        "hardware": hardware,
        "processor": processor(),
        "cores": os.cpu_count(),
        "memory_gib": _memory_gib(),
        "threads": torch.get_num_threads(),
        "system": platform.platform(terse=True),
        "python": platform.python_version(),
        **{name: found for name in VERSIONS if (found := _version(name)) is not None},
        **{name: getattr(environment, name) for name in ("device", "dtype", "lowering", "draw_on")},
    }


def hardware_of(device: str) -> str:
    """Name of the device the numbers belong to."""
    if device.startswith("cuda"):
        return torch.cuda.get_device_name(device)
    threads = torch.get_num_threads()
    return f"{threads} {'thread' if threads == 1 else 'threads'} of {processor()}"


def commit() -> str:
    """The commit of the code, "+" where files differ from it; its version where there is none."""
    command = ["git", "describe", "--always", "--dirty=+", "--exclude=*"]
    try:
        done = subprocess.run(
            command, cwd=Path(__file__).parent, capture_output=True, text=True, check=False
        )
    except OSError:
        return metadata.version("deltapass")
    return done.stdout.strip() or metadata.version("deltapass")


def load_average() -> float | None:
    """Processes that want a core, the mean of a minute; None where the system does not say."""
    return round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None


def _memory_gib() -> float | None:
    if not MEMORY.exists():
        return None
    line = next(line for line in MEMORY.read_text().splitlines() if line.startswith("MemTotal"))
    return round(int(line.split()[1]) / 2**20, 1)


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None
