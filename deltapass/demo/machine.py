"""What the demo's times depend on besides the methods: threads, processor, the compiler's state."""

from __future__ import annotations

import getpass
import os
import platform
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import torch

CPU_INFO: Final = Path("/proc/cpuinfo")
PROBES: Final = 3


def processor() -> str:
    """Name of the processor."""
    lines = CPU_INFO.read_text().splitlines() if CPU_INFO.exists() else []
    names = (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor() or platform.machine())


@contextmanager
def faster_threads(run: Callable[[], Any]) -> Iterator[int]:
    """Within, as many threads as torch had or one, whichever runs `run` sooner at its worst.

    On a machine that is busy with something else the barriers between threads can make a call a
    hundred times slower; then nobody's times would mean anything.
    """
    before = torch.get_num_threads()
    worst: dict[int, float] = {}
    try:
        for threads in dict.fromkeys((1, before)):
            torch.set_num_threads(threads)
            run()  # the first call pays for memory
            worst[threads] = max(seconds_of(run) for _ in range(PROBES))
        chosen = min(worst, key=lambda threads: worst[threads])
        torch.set_num_threads(chosen)
        yield chosen
    finally:
        torch.set_num_threads(before)


def compile_cache() -> str:
    """What Inductor's cache on disk holds, by its documented place."""
    default = Path(tempfile.gettempdir()) / f"torchinductor_{getpass.getuser()}"
    graphs = Path(os.environ.get("TORCHINDUCTOR_CACHE_DIR", default)) / "fxgraph"
    return "filled" if graphs.exists() else "empty"


def start_compiler(lowering: str) -> float:
    """Seconds to compile next to nothing, so that no method pays for the compiler's own start.

    The first compilation imports Inductor and, on a fresh machine, precompiles its C++ headers:
    many seconds that would be charged to whichever method happens to come first.
    """
    if lowering == "eager":
        return 0.0
    return seconds_of(lambda: torch.compile(torch.sin, dynamic=False)(torch.zeros(64)))


def seconds_of(run: Callable[[], Any]) -> float:
    """Wall time of one call."""
    started = time.perf_counter()
    run()
    return time.perf_counter() - started
