"""The TensorRT format: an engine a segment, built from the same ONNX files as the ONNX format's."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final, final

import torch
from deltapass.backends.onnx.float8 import quantise_casts
from deltapass.backends.onnx.format import OPEN_OPTIONS as ONNX_OPTIONS
from deltapass.backends.onnx.format import open_segments, write_segments
from deltapass.backends.tensorrt.build import (
    Built,
    Range,
    Ranges,
    Settings,
    architectures_of,
    build,
)
from deltapass.backends.tensorrt.command import trtexec_line
from deltapass.backends.tensorrt.library import FLAVOURS, load_library
from deltapass.backends.tensorrt.run import EngineSegment, Workspace, cuda_device, load_segment

from deltapass.bundles.formats import (
    Job,
    SegmentProgram,
    Written,
    WrittenSegment,
    check_option,
    check_switches,
    is_whole,
    known_options,
)
from deltapass.bundles.manifest import BundlePlan
from deltapass.compiler.lowering import on_device
from deltapass.errors import DynamicShapeError
from deltapass.graph.executable import Lowered
from deltapass.graph.sizes import evaluate

ONNX_FOLDER: Final = "onnx"
MOST_EFFORT: Final = 5
SETTINGS: Final = MappingProxyType({each.name: each.default for each in fields(Settings)})
WRITE_OPTIONS: Final = MappingProxyType({**SETTINGS, "keep_onnx": False})
OPEN_OPTIONS: Final = MappingProxyType({"device": 0})


@final
class TensorRTFormat:
    """Builds engines with TensorRT, or with TensorRT-RTX, which needs no GPU for it.

    Precision is that of the model's own types. Options when written: `flavour`, "tensorrt" or
    "tensorrt-rtx"; `cache_dir`, where engines and timings are kept between exports;
    `architectures`, `effort`, `tf32`, see `Settings`; `keep_onnx`, which leaves the ONNX
    files in the bundle. Option when opened: `device`, the number of the GPU.
    """

    def check(self, options: Mapping[str, Any]) -> None:
        """Every setting is of its kind."""
        given = known_options(options, WRITE_OPTIONS)
        folder, names, effort = (given[n] for n in ("cache_dir", "architectures", "effort"))
        flavours = ", ".join(map(repr, FLAVOURS))
        fits = given["flavour"] is None or given["flavour"] in FLAVOURS
        check_option(given, "flavour", fits, f"one of {flavours}, or None")
        check_option(given, "cache_dir", isinstance(folder, str | Path | None), "a folder's path")
        listed = names is None or (
            isinstance(names, list | tuple) and all(isinstance(name, str) for name in names)
        )
        check_option(given, "architectures", listed, "a list of names, such as ['SM89']")
        fits = effort is None or (is_whole(effort) and 0 <= effort <= MOST_EFFORT)
        check_option(given, "effort", fits, f"a whole number from 0 to {MOST_EFFORT}, or None")
        check_switches(given, "tf32", "keep_onnx")

    def write(self, job: Job) -> Written:
        """Write ONNX files aside, and build an engine from each."""
        options = known_options(job.options, WRITE_OPTIONS)
        settings = _settings(options)
        library = load_library(settings.flavour)
        ranges = {segment.name: _ranges(segment, job) for segment in job.segments}
        onnx_folder = job.folder / ONNX_FOLDER
        onnx_folder.mkdir()
        float8: list[bool] = []
        sources = write_segments(
            job, onnx_folder, None, lambda model: float8.append(quantise_casts(model))
        )
        told = architectures_of(settings, library, float8=any(float8))
        settings = replace(settings, architectures=told)  # the same for all segments
        segments, notes = {}, {}
        for segment in job.segments:
            file = f"{segment.name}.engine"
            source = onnx_folder / sources.segments[segment.name].file
            built = build(source, ranges[segment.name], settings, library)
            (job.folder / file).write_bytes(built.engine)
            segments[segment.name] = WrittenSegment(file=file)
            shown = f"{ONNX_FOLDER}/{source.name}"  # the command is run in the bundle's folder
            line = trtexec_line(shown, file, ranges[segment.name], library.flavour)
            notes[segment.name] = _note(built, line)
        return Written(
            segments=segments,
            producer={**sources.producer, library.flavour: library.version},
            build={
                "flavour": library.flavour,
                "keep_onnx": bool(options["keep_onnx"]),
                "float8": any(float8),
                "segments": notes,
            },
        )

    def finish(self, folder: Path, plan: BundlePlan) -> None:
        """Remove the ONNX files, unless they are to be kept."""
        if not plan.build["keep_onnx"]:
            shutil.rmtree(folder / ONNX_FOLDER)

    def open(
        self, folder: Path, plan: BundlePlan, options: Mapping[str, Any]
    ) -> Mapping[str, Lowered]:
        """An execution context a segment, with one workspace for all."""
        library = load_library(str(plan.build["flavour"]))
        device = cuda_device(library, _index(options))
        workspace, lock = Workspace(device), threading.Lock()
        return {
            segment.name: OneAtATime(
                load_segment(
                    (folder / segment.file).read_bytes(),
                    library,
                    device,
                    inputs=segment.inputs,
                    workspace=workspace,
                ),
                segment.outputs,
                lock,
            )
            for segment in plan.segments
        }

    def open_to_verify(self, folder: Path, plan: BundlePlan) -> tuple[Mapping[str, Lowered], str]:
        """The engines, where there is a GPU; else what they were built from."""
        if torch.cuda.is_available():
            return on_device(self.open(folder, plan, {}), self.device(plan, {})), "the engines"
        files = {s.name: f"{s.name}.onnx" for s in plan.segments}
        # ONNX Runtime's own rewrites fail on operators that quantise to 8-bit floats.
        options = {**ONNX_OPTIONS, "optimize": not plan.build["float8"]}
        segments = open_segments(folder / ONNX_FOLDER, plan, files, options)
        segments = on_device(segments, torch.device("cpu"))
        return segments, "the ONNX files in ONNX Runtime: there is no GPU to run the engines on"

    def device(self, plan: BundlePlan, options: Mapping[str, Any]) -> torch.device:
        """The GPU."""
        return torch.device("cuda", _index(options))


@final
@dataclass(frozen=True)
class OneAtATime:
    """An engine called by one thread at a time, with outputs in the segment's order.

    All segments share the lock, because they share the workspace.
    """

    engine: EngineSegment
    outputs: tuple[str, ...]
    lock: Any = field(repr=False)

    def __call__(self, *arguments: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Run the engine."""
        with self.lock:
            made = self.engine(*arguments)
        named = dict(zip((port.name for port in self.engine.outputs), made, strict=True))
        return tuple(named[name] for name in self.outputs)


def _index(options: Mapping[str, Any]) -> int:
    chosen = known_options(options, OPEN_OPTIONS)
    given: Any = chosen["device"]
    check_option(chosen, "device", is_whole(given) and given >= 0, "the number of a GPU, from 0 on")
    return int(given)


def _settings(options: Mapping[str, Any]) -> Settings:
    folder, architectures = options["cache_dir"], options["architectures"]
    told = {name: options[name] for name in SETTINGS}
    told["cache_dir"] = None if folder is None else Path(folder)
    told["architectures"] = None if architectures is None else tuple(architectures)
    return Settings(**told)


def _ranges(segment: SegmentProgram, job: Job) -> Ranges:
    """The optimisation profile of a segment: shapes at the least, example's and greatest sizes.

    Raises:
        DynamicShapeError: If a dimension has no greatest size.
    """
    ends: list[dict[str, int]] = [{}, {}]
    for name, (least, most) in job.dimensions.items():
        if most is None:
            raise DynamicShapeError(
                f"dimension {name!r} has no greatest size, which an engine must be built for",
                "Give it one: torch.export.Dim(name, min=..., max=...)",
            )
        ends[0][name], ends[1][name] = least, most
    ranges = {}
    for name, example in zip(segment.inputs, segment.example, strict=True):
        shape = segment.shapes.get(name, tuple(example.shape))
        smallest, largest = (tuple(evaluate(size, sizes) for size in shape) for sizes in ends)
        ranges[name] = Range(
            smallest=smallest,
            usual=tuple(example.shape),
            largest=largest,
            free=any(isinstance(size, str) for size in shape),
        )
    return ranges


def _note(built: Built, command: str) -> dict[str, Any]:
    """What plan.json says of one build."""
    return {
        "layers": built.layers,
        "bytes": len(built.engine),
        "seconds": round(built.seconds, 3),
        "from_cache": built.cached,
        "command": command,
        "log": built.log,
    }
