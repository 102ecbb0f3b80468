"""TensorRT engines from ONNX files: built, and kept in a cache of our own.

An engine's precision is that of the graph's types: the network is strongly typed. TensorRT-RTX
builds without a GPU; full TensorRT measures kernels and needs the GPU the engine is for.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Self, final

import torch
from deltapass.backends.tensorrt.cache import Entry, find, graph_digest, key_of, store, write_whole
from deltapass.backends.tensorrt.library import (
    Library,
    Log,
    load_library,
    make_log,
)

from deltapass.errors import EngineBuildError

CURRENT: Final = "CURRENT"  # the architecture of the GPU at hand

Shape = tuple[int, ...]


@final
@dataclass(frozen=True, kw_only=True, slots=True)
class Range:
    """The shapes an input may have: the smallest, the one to be fastest at, the largest.

    `free` says that the graph leaves a dimension open, even if all three shapes are one.
    """

    smallest: Shape
    usual: Shape
    largest: Shape
    free: bool = False

    @classmethod
    def fixed(cls, shape: Shape) -> Self:
        """One shape only."""
        return cls(smallest=shape, usual=shape, largest=shape)

    @property
    def shapes(self) -> tuple[Shape, Shape, Shape]:
        """All three, in the order in which an optimisation profile takes them."""
        return self.smallest, self.usual, self.largest


Ranges = Mapping[str, Range]


@final
@dataclass(frozen=True, kw_only=True, slots=True)
class Settings:
    """What an engine is built with.

    Attributes:
        flavour: "tensorrt" or "tensorrt-rtx"; None takes what is installed.
        cache_dir: Where engines are kept and found again; None keeps none.
        architectures: What TensorRT-RTX builds for, such as ("SM89",), or ("CURRENT",). None: the
            GPU at hand, and without one all from SM80 on that the library knows; from SM89 on for
            graphs with 8-bit floats.
        effort: The builder's optimization level, 0 to 5; None leaves the library's default.
        tf32: Whether float32 products may be rounded to TF32; torch's own default is that not.
    """

    flavour: str | None = None
    cache_dir: Path | None = None
    architectures: tuple[str, ...] | None = None
    effort: int | None = None
    tf32: bool = False


@final
@dataclass(frozen=True, kw_only=True, slots=True)
class Built:
    """An engine.

    Attributes:
        engine: The serialised engine (a plan file's content).
        layers: Layers of the network that the parser made.
        log: What the library said while it built; empty where the engine was found.
        seconds: Wall time, of looking it up where it was found.
        cached: Whether it was found rather than built.
    """

    engine: bytes
    layers: int
    log: str
    seconds: float
    cached: bool


@final
@dataclass(frozen=True, kw_only=True)
class _Task:
    """One build: what from, with what, for what."""

    onnx_path: Path
    ranges: Ranges
    settings: Settings
    library: Library
    architectures: tuple[str, ...]

    def error(self, problems: tuple[str, ...]) -> EngineBuildError:
        return EngineBuildError(self.onnx_path.name, self.library.flavour, problems)


def build(
    onnx_path: Path | str,
    ranges: Ranges,
    settings: Settings | None = None,
    library: Library | None = None,
) -> Built:
    """An engine for an ONNX file, built or found in the cache.

    Args:
        onnx_path: The model; external data is looked for beside it.
        ranges: Input name -> shapes. Inputs of a fixed shape may be left out.
        settings: None for the defaults.
        library: None loads the one that `settings` asks for.

    Raises:
        MissingLibraryError: If the library is not installed.
        EngineBuildError: If there is no such file, the parser or the builder refuses the graph, or
            the ranges do not fit its inputs. Names everything the parser says.
    """
    started = time.perf_counter()
    settings = settings or Settings()
    library = library or load_library(settings.flavour)
    task = _Task(
        onnx_path=Path(onnx_path),
        ranges=ranges,
        settings=settings,
        library=library,
        architectures=architectures_of(settings, library),
    )
    key = _key(task) if settings.cache_dir is not None else ""
    entry = find(settings.cache_dir, key) if settings.cache_dir is not None else None
    found, log = entry is not None, ""
    if entry is None:
        entry, log = _build(task)
        if settings.cache_dir is not None:
            store(settings.cache_dir, key, entry)
    seconds = time.perf_counter() - started
    return Built(engine=entry.engine, layers=entry.layers, log=log, seconds=seconds, cached=found)


def architectures_of(
    settings: Settings, library: Library, *, float8: bool = False
) -> tuple[str, ...]:
    """What to tell the builder; nothing where it knows GPUs only by the one it runs on.

    Raises:
        EngineBuildError: If the library does not know one of them.
    """
    known = library.architectures
    if settings.architectures is None and torch.cuda.is_available():
        return (CURRENT,) if library.is_rtx else ()
    if settings.architectures is None:
        # SM75 would cost the others: the library's own default leaves it out for that.
        least = 89 if float8 else 80  # the first that computes in 8-bit floats
        return tuple(name for name in known if int(name.removeprefix("SM")) >= least)
    strange = [name for name in settings.architectures if name not in (*known, CURRENT)]
    if strange:
        problem = f"it knows {', '.join(known) or 'no'} architectures, not {', '.join(strange)}"
        raise EngineBuildError("any graph", library.flavour, [problem])
    return settings.architectures


def _key(task: _Task) -> str:
    """Everything the engine depends on."""
    try:
        digest = graph_digest(task.onnx_path)
    except Exception as error:
        raise task.error((f"{type(error).__name__}: {error}",)) from error
    ranges = sorted((name, span.shapes) for name, span in task.ranges.items())
    library, settings = task.library, task.settings
    told = [task.architectures, settings.effort, settings.tf32]
    key: str = key_of([digest, library.flavour, library.version, ranges, told, _here(task)])
    return key


def _here(task: _Task) -> list[object]:
    """The GPU at hand, for engines that are built for it."""
    if task.architectures not in ((), (CURRENT,)) or not torch.cuda.is_available():
        return []
    return [torch.cuda.get_device_name(), *torch.cuda.get_device_capability()]


# ---- building ----------------------------------------------------------------------------------


def _build(task: _Task) -> tuple[Entry, str]:
    """Parse, configure, build."""
    trt, log = task.library.module, make_log(task.library)
    builder = trt.Builder(log.logger)
    if builder is None:
        raise task.error(log.problems)
    flags = getattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)
    # Versions without the flag know strongly typed networks only.
    network = builder.create_network(0 if flags is None else 1 << int(flags))
    _parse(task, network, log)
    config = builder.create_builder_config()
    _configure(task, config)
    _add_profile(task, (builder, network, config), log)
    timing = _take_timings(task, config)
    engine = builder.build_serialized_network(network, config)
    if engine is None:
        raise task.error(log.problems)
    if timing is not None:
        write_whole(timing, [bytes(config.get_timing_cache().serialize())])
    return Entry(engine=bytes(engine), layers=network.num_layers), "\n".join(log.lines)


def _parse(task: _Task, network: Any, log: Log) -> None:
    """Fill the network from the file.

    Raises:
        EngineBuildError: With every message of the parser.
    """
    if not task.onnx_path.is_file():
        raise task.error((f"there is no file {task.onnx_path}",))
    parser = task.library.module.OnnxParser(network, log.logger)
    # By path, not by content: external data is looked for beside it.
    if not parser.parse_from_file(str(task.onnx_path)):
        said = [parser.get_error(at) for at in range(parser.num_errors)]
        named = tuple(f"node {e.node_name()!r} ({e.node_operator()}): {e.desc()}" for e in said)
        raise task.error(named or log.problems)


def _configure(task: _Task, config: Any) -> None:
    trt = task.library.module
    if not task.settings.tf32:
        config.clear_flag(trt.BuilderFlag.TF32)
    if task.settings.effort is not None:
        config.builder_optimization_level = task.settings.effort
    if task.architectures:
        config.num_compute_capabilities = len(task.architectures)
        for at, name in enumerate(task.architectures):
            config.set_compute_capability(getattr(trt.ComputeCapability, name), at)


def _add_profile(task: _Task, objects: tuple[Any, Any, Any], log: Log) -> None:
    """One optimisation profile over all inputs."""
    builder, network, config = objects
    tensors = [network.get_input(at) for at in range(network.num_inputs)]
    shapes = {tensor.name: tuple(tensor.shape) for tensor in tensors}
    problems = [f"there is no input {name!r}" for name in task.ranges if name not in shapes]
    profile = builder.create_optimization_profile()
    for name, shape in shapes.items():
        span = task.ranges.get(name)
        if span is None and min(shape, default=0) >= 0:
            span = Range.fixed(shape)
        problem = _misfit(name, shape, span)
        if problem is None and span is not None:
            profile.set_shape(name, *span.shapes)
        problems.extend([problem] if problem else [])
    if problems:
        raise task.error((*problems, f"inputs are {', '.join(shapes)}"))
    if config.add_optimization_profile(profile) < 0:
        raise task.error(log.problems)


def _misfit(name: str, shape: Shape, span: Range | None) -> str | None:
    """Why a range does not fit an input whose free dimensions are -1, or None."""
    if span is None:
        return f"input {name!r} has free dimensions {list(shape)} and no range"
    for given in span.shapes:
        fits = len(given) == len(shape) and all(
            free < 0 or free == size for free, size in zip(shape, given, strict=True)
        )
        if not fits:
            return f"input {name!r} is {list(shape)} and its range says {list(given)}"
    ordered = all(a <= b <= c for a, b, c in zip(*span.shapes, strict=True))
    return None if ordered else f"the range of input {name!r} does not rise"


def _take_timings(task: _Task, config: Any) -> Path | None:
    """Give the builder the timings of earlier builds; the file to write them back to.

    TensorRT-RTX has the calls but measures nothing, and warns when they are made.
    """
    if task.settings.cache_dir is None or task.library.is_rtx:
        return None
    name = hashlib.sha256(repr([task.library.version, _here(task)]).encode()).hexdigest()[:16]
    path = task.settings.cache_dir / f"{name}.timings"
    kept = path.read_bytes() if path.is_file() else b""
    # A damaged file gives no cache; an empty one always does.
    cache = config.create_timing_cache(kept) or config.create_timing_cache(b"")
    config.set_timing_cache(cache, False)
    return path
