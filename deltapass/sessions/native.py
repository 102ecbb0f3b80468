"""The compiled check of weights: unchanged.cpp, built once a machine, in the background.

Reading the version and the address of some hundred tensors takes Python about a hundred
microseconds, C++ a few. Building takes a C++ compiler about ten seconds, so nobody waits for it: a
process of its own builds, with low priority, while calls use the check in weights.py. Where it
cannot be built (no compiler, no headers of Python) that is what is used for good; the compiler's
words are kept beside it. DELTAPASS_NATIVE=0 in the environment keeps it from being built or used.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import importlib.util
import math
import os
import platform
import shlex
import shutil
import subprocess
import sys
import time
from array import array
from collections.abc import Callable, Sequence
from pathlib import Path
from sysconfig import get_config_var, get_path
from typing import Any, Final, final

import torch

SOURCE: Final = Path(__file__).with_name("unchanged.cpp")
MODULE: Final = "deltapass_unchanged"
OPTIONS: Final = ("-O1", "-std=c++20", "-shared", "-fPIC", "-w")
LIBRARIES: Final = ("-ltorch_python", "-ltorch_cpu", "-lc10")
SWITCH: Final = "DELTAPASS_NATIVE"
FIRST_PAUSE: Final = 64  # looks from one question whether it is built to the next; doubles
RETRY: Final = 86400.0  # seconds after which a compiler that failed is asked again
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
        self._pause = FIRST_PAUSE

    def get(self) -> Unchanged | None:
        """The check, or None where it is not there (yet). Nothing that fails here matters."""
        if self._found is None and self._wait >= 0:
            self._wait -= 1
            if self._wait < 0:
                with contextlib.suppress(OSError, RuntimeError):  # no home, or none to write in
                    self._ask()
        return self._found

    def _ask(self) -> None:
        path = library_path()
        if path.exists():
            self._found = load(path) if _is_ours(path) else None
        elif build(path):
            self._wait = self._pause
            self._pause *= 2


def allowed() -> bool:
    """Whether this machine could build it, and nobody said not to."""
    single = not get_config_var("Py_GIL_DISABLED")  # it would switch the lock on again
    return sys.platform == "linux" and single and os.environ.get(SWITCH, "1") != "0"


def library_path() -> Path:
    """Where the built module lies, in torch's folder of extensions.

    Raises:
        RuntimeError: If there is no home directory.
    """
    told = os.environ.get("TORCH_EXTENSIONS_DIR")
    root = Path(told) if told else Path.home() / ".cache" / "torch_extensions"
    return root / "deltapass" / f"{MODULE}_{_key()}.so"


@functools.cache
def _key() -> str:
    """By source, torch, Python and processor."""
    built_for = (torch.__version__, str(get_config_var("SOABI")), platform.machine())
    seen = "\n".join((SOURCE.read_text(), *OPTIONS, *built_for))
    return hashlib.sha256(seen.encode()).hexdigest()[:16]


def _is_ours(path: Path) -> bool:
    """Whether nobody else could have put the file there: it is going to be run."""
    kept = (path.stat(), path.parent.stat())
    return all(at.st_uid == os.getuid() and not at.st_mode & 0o022 for at in kept)


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
    first does it. A compiler that failed is asked again after a day.

    Raises:
        OSError: If there is nowhere to put it.
    """
    found = shutil.which("c++") or shutil.which("g++")
    compiler = shlex.split(os.environ.get("CXX", "")) or ([found] if found else [])
    if not compiler or _age(path.with_suffix(".failed")) < RETRY:
        return False
    if _claimed(path.with_suffix(".part")):
        _start(compiler, path)
    return True


def _age(path: Path) -> float:
    """Seconds since a file was written; for ever where there is none."""
    try:
        return time.time() - path.stat().st_mtime
    except FileNotFoundError:
        return math.inf


def _claimed(part: Path) -> bool:
    """Whether it is for this process to build: nobody is at it, or whoever was is long gone."""
    part.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    if STALE < _age(part) < math.inf:
        part.unlink(missing_ok=True)
    try:
        part.open("x").close()
    except FileExistsError:
        return False
    return True


def _start(compiler: Sequence[str], path: Path) -> None:
    """Run a compiler in the background; what it made is moved into place, or what it said."""
    made, log = (path.with_suffix(f".{os.getpid()}.{end}") for end in ("made", "log"))
    command = shlex.join([*compiler, *_arguments(), "-o", str(made)])
    told = (made, log, path, path.with_suffix(".failed"), path.with_suffix(".part"))
    names = [shlex.quote(str(name)) for name in told]
    script = (
        "(umask 077; nice -n 10 {0} > {2} 2>&1 && mv {1} {3} && rm -f {2} || mv {2} {4}; "
        "rm -f {1} {5}) < /dev/null > /dev/null 2>&1 &"
    ).format(command, *names)
    # The shell returns at once; what it started outlives even this process.
    subprocess.run(["sh", "-c", script], check=False, cwd="/")


def _arguments() -> list[str]:
    # As torch.utils.cpp_extension has them, which cannot be imported where setuptools is missing.
    folder = Path(torch.__file__).parent
    include = folder / "include"
    return [
        *OPTIONS,
        *(f"-I{at}" for at in (include, include / "torch/csrc/api/include", get_path("include"))),
        *(str(SOURCE), f"-L{folder / 'lib'}", *LIBRARIES),
    ]
