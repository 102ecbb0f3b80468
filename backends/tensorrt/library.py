"""The TensorRT library, of either flavour.

Full TensorRT and TensorRT-RTX have one Python interface under two names. What differs is asked
here, once: which is installed, what its logger says, which architectures it builds for.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType, ModuleType
from typing import Any, Final, final

from deltapass.errors import MissingDeviceError, MissingLibraryError, OptionError

# Flavour, which is also the name of the pip extra -> the module it is imported as.
FLAVOURS: Final[Mapping[str, str]] = MappingProxyType(
    {"tensorrt": "tensorrt", "tensorrt-rtx": "tensorrt_rtx"}
)


@final
@dataclass(frozen=True, kw_only=True)
class Library:
    """A loaded library. `module` is injected so that another one can stand in for it."""

    module: Any
    flavour: str
    version: str

    @property
    def is_rtx(self) -> bool:
        """Whether this is TensorRT-RTX, which builds engines without a GPU."""
        return self.flavour == "tensorrt-rtx"

    @property
    def architectures(self) -> tuple[str, ...]:
        """Architectures the library can be told to build for, such as SM89. Full TensorRT: none."""
        members = getattr(getattr(self.module, "ComputeCapability", None), "__members__", {})
        return tuple(name for name in members if name.startswith("SM")) if self.is_rtx else ()


def load_library(flavour: str | None = None) -> Library:
    """Import the library.

    Args:
        flavour: A key of `FLAVOURS`; None takes what is installed, full TensorRT before RTX.

    Raises:
        MissingLibraryError: If it is not installed, or installed without its shared libraries.
        OptionError: If there is no such flavour.
    """
    if flavour is not None and flavour not in FLAVOURS:
        raise OptionError("flavour", flavour, f"one of {', '.join(map(repr, FLAVOURS))}")
    wanted = FLAVOURS if flavour is None else (flavour,)
    cause: ImportError | None = None
    for name in wanted:
        try:
            module = importlib.import_module(FLAVOURS[name])
        except ImportError as error:
            cause = cause or error
            continue
        if _flavour_of(module) == name:
            return Library(module=module, flavour=name, version=str(module.__version__))
    if flavour is not None:
        raise MissingLibraryError(FLAVOURS[flavour], flavour) from cause
    # The package index has this extra whole; the other needs the vendor's own index.
    raise MissingLibraryError("neither tensorrt nor tensorrt_rtx", "tensorrt-rtx") from cause


def missing_device(flavour: str, architectures: Sequence[str] = ()) -> MissingDeviceError:
    """The error that says what engines of a flavour run on."""
    which = f" of architecture {', '.join(architectures)}" if architectures else ""
    return MissingDeviceError(
        f"engines of {flavour} run on a CUDA device{which}, and none was found",
        "Move to a machine that has one; lowering 'inductor', formats 'onnx' and 'aoti' need none",
    )


def _flavour_of(module: ModuleType) -> str:
    """By what the module says: torch_tensorrt enters TensorRT-RTX under the name `tensorrt`."""
    names = {module.__name__, getattr(module, "_package_name", "")}
    return "tensorrt-rtx" if "tensorrt_rtx" in names else "tensorrt"


@final
@dataclass(frozen=True)
class Log:
    """What the library's logger said: everything but its verbose chatter, and the errors."""

    logger: Any
    lines: list[str]
    errors: list[str]

    @property
    def problems(self) -> tuple[str, ...]:
        """The errors, or a sentence that there were none."""
        return tuple(self.errors) or ("the library gives no reason",)


def make_log(library: Library) -> Log:
    """A logger that keeps its lines.

    The library has one logger a process: while an object made with another one lives, lines go
    there, and this one stays empty.
    """
    base = library.module.ILogger
    lines: list[str] = []
    errors: list[str] = []

    def log(_: Any, severity: Any, message: str) -> None:
        if severity != base.VERBOSE:
            lines.append(f"{severity.name}: {message}")
        if severity in (base.ERROR, base.INTERNAL_ERROR):
            errors.append(message)

    def made(self: Any) -> None:
        base.__init__(self)  # the binding refuses an object whose base was not initialised

    members: dict[str, Callable[..., None]] = {"__init__": made, "log": log}
    return Log(logger=type("KeepingLogger", (base,), members)(), lines=lines, errors=errors)
