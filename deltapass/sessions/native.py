"""The compiled check of weights: unchanged.cpp, built once a machine, in the background.

Reading the version and the address of some hundred tensors takes Python about a hundred
microseconds, C++ a few. Building takes a C++ compiler about ten seconds, so nobody waits for it: a
process of its own builds, with low priority, while calls use the check in weights.py. Where it
cannot be built (no compiler, no headers of Python) that is what is used for good; the compiler's
words are kept beside it. DELTAPASS_NATIVE=0 in the environment keeps it from being built or used.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import os
import shlex
import shutil
import subprocess
import sys
import time
from array import array
from collections.abc import Callable, Sequence
from pathlib import Path
from sysconfig import get_path
from typing import Any, Final, final

import torch

SOURCE: Final = Path(__file__).with_name("unchanged.cpp")
MODULE: Final = "deltapass_unchanged"
OPTIONS: Final = ("-O1", "-std=c++20", "-shared", "-fPIC", "-w")
LIBRARIES: Final = ("-ltorch_python", "-ltorch_cpu", "-lc10")
SWITCH: Final = "DELTAPASS_NATIVE"
POLL: Final = 64  # looks from one question whether the build is done to the next
STALE: Final = 600.0  # seconds after which a build that is not done counts as dead

# (arguments, positions, objects, versions, places) -> whether all is as noted
Unchanged = Callable[
    [tuple[Any, ...], "array[int]", Sequence[Any], "array[int]", "array[int]"], bool
]


@final
class NativeCheck:
    """The compiled check, once there is one. Asks for it to be built, then looks now and then."""

    def __init__(self) -> None:
        self._found: Unchanged | None = None
        self._wait = 0 if allowed() else -1  # looks until the next question; -1: never again

    def get(self) -> Unchanged | None:
        """The check, or None where it is not there (yet)."""
        if self._found is None and self._wait >= 0:
            self._wait -= 1
            if self._wait < 0:
                self._ask()
        return self._found

    def _ask(self) -> None:
        path = library_path()
        if path.exists():
            self._found = load(path)
        elif build(path):
            self._wait = POLL


def allowed() -> bool:
    """Whether this machine could build it, and nobody said not to."""
    return os.name == "posix" and os.environ.get(SWITCH, "1") != "0"


def library_path() -> Path:
    """Where the built module lies: by source, torch and Python, in torch's folder of extensions."""
    parts = (SOURCE.read_text(), *OPTIONS, torch.__version__, str(sys.implementation.cache_tag))
    seen = "\n".join(parts)
    key = hashlib.sha256(seen.encode()).hexdigest()[:16]
    told = os.environ.get("TORCH_EXTENSIONS_DIR")
    root = Path(told) if told else Path.home() / ".cache" / "torch_extensions"
    return root / "deltapass" / f"{MODULE}_{key}.so"


def load(path: Path) -> Unchanged | None:
    """The function of a built module; None if it cannot be loaded."""
    spec = importlib.util.spec_from_file_location(MODULE, path)
    if spec is None or spec.loader is None:
        return None
    try:
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    except ImportError:  # built for another machine that shares this folder
        return None
    found: Unchanged = module.unchanged
    return found


def build(path: Path) -> bool:
    """Start building in the background; False if that is in vain.

    The file appears whole or not at all. Several processes build once: who makes the `.part`
    first does it.
    """
    compiler = os.environ.get("CXX") or shutil.which("c++") or shutil.which("g++")
    failed, part = path.with_suffix(".failed"), path.with_suffix(".part")
    if compiler is None or failed.exists():
        return False
    try:
        if _claimed(part):
            _start([*compiler.split(), *_arguments(), "-o", str(part)], part, path, failed)
    except OSError:  # nowhere to put it, or no shell
        return False
    return True


def _claimed(part: Path) -> bool:
    """Whether it is for this process to build: nobody is at it, or whoever was is long gone."""
    part.parent.mkdir(parents=True, exist_ok=True)
    with contextlib.suppress(FileNotFoundError):
        if time.time() - part.stat().st_mtime > STALE:
            part.unlink()
    try:
        part.open("x").close()
    except FileExistsError:
        return False
    return True


def _start(command: Sequence[str], part: Path, path: Path, failed: Path) -> None:
    """Run a compiler in the background; what it made is moved into place, or what it said."""
    log = part.with_suffix(".log")
    names = (shlex.join(command), *(shlex.quote(str(at)) for at in (log, part, path, failed)))
    script = (
        "(nice -n 10 {0} > {1} 2>&1 && mv {2} {3} && rm -f {1} || {{ mv {1} {4}; rm -f {2}; }})"
        " < /dev/null > /dev/null 2>&1 &"
    ).format(*names)
    # The shell returns at once; what it started outlives even this process.
    subprocess.run(["sh", "-c", script], check=False)


def _arguments() -> list[str]:
    # As torch.utils.cpp_extension has them, which cannot be imported where setuptools is missing.
    folder = Path(torch.__file__).parent
    include = folder / "include"
    return [
        *OPTIONS,
        *(f"-I{at}" for at in (include, include / "torch/csrc/api/include", get_path("include"))),
        *(str(SOURCE), f"-L{folder / 'lib'}", *LIBRARIES),
    ]
