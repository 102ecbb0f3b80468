"""The ONNX format: a file a segment, all weights in one file beside them, run by ONNX Runtime."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final, final

import torch
from deltapass.backends.onnx.operators import gathered_once
from deltapass.backends.onnx.optimize import optimize
from deltapass.backends.onnx.session import ELEMENTS, OrtSegment, device_of, open_session
from deltapass.backends.onnx.streams import on_stream
from torch.export import ExportedProgram

from deltapass.bundles.formats import (
    Job,
    SegmentProgram,
    Written,
    WrittenSegment,
    check_option,
    is_whole,
    known_options,
)
from deltapass.bundles.manifest import BundlePlan
from deltapass.bundles.weights_file import WEIGHTS_FILE, Location, TensorStore
from deltapass.compiler.lowering import on_device
from deltapass.errors import ExportError, LoweringError
from deltapass.graph.executable import Lowered
from deltapass.libraries import optional_module

aten = torch.ops.aten

LEAST_OPSET: Final = 18  # of torch.onnx: it takes less, and writes this one
INLINE: Final = 256  # bytes; shapes, axes and scalars stay in the ONNX file
WRITE_OPTIONS: Final = MappingProxyType({"opset": None})
OPEN_OPTIONS: Final = MappingProxyType(
    {
        "providers": ("CPUExecutionProvider",),
        "threads": 0,
        "share_weights": False,
        "optimize": True,
        "session_options": None,
    }
)

Rework = Callable[[Any], object]


@final
class OnnxFormat:
    """Writes ONNX files and runs them in ONNX Runtime, with IO binding.

    Options when written: `opset`. Options when opened: `providers`, as ONNX Runtime takes them;
    `threads`, 0 for ONNX Runtime's own choice; `share_weights`, which leaves weights as they lie in
    the mapped file instead of packing them for speed; `optimize`, whether ONNX Runtime may rewrite
    the graphs; `session_options`, a further mapping of session configuration entries.
    """

    def check(self, options: Mapping[str, Any]) -> None:
        """An opset is one that torch.onnx has operators for and onnx knows."""
        given = known_options(options, WRITE_OPTIONS)
        most = _library("onnx").defs.onnx_opset_version()
        opset = given["opset"]
        fits = opset is None or (is_whole(opset) and LEAST_OPSET <= opset <= most)
        check_option(given, "opset", fits, f"a whole number from {LEAST_OPSET} to {most}, or None")

    def write(self, job: Job) -> Written:
        """Write every segment with its weights as external data in one safetensors file."""
        options = known_options(job.options, WRITE_OPTIONS)
        return write_segments(job, job.folder, options["opset"])

    def finish(self, folder: Path, plan: BundlePlan) -> None:
        """Nothing is left to do."""

    def open(
        self, folder: Path, plan: BundlePlan, options: Mapping[str, Any]
    ) -> Mapping[str, Lowered]:
        """A session a segment."""
        chosen = known_options(options, OPEN_OPTIONS)
        return open_segments(folder, plan, {s.name: s.file for s in plan.segments}, chosen)

    def open_to_verify(self, folder: Path, plan: BundlePlan) -> tuple[Mapping[str, Lowered], str]:
        """The sessions, on the CPU."""
        return on_device(self.open(folder, plan, {}), torch.device("cpu")), "ONNX Runtime, CPU"

    def device(self, plan: BundlePlan, options: Mapping[str, Any]) -> torch.device:
        """The first provider's device."""
        return torch.device(device_of(known_options(options, OPEN_OPTIONS)["providers"]))


def write_segments(
    job: Job, folder: Path, opset: int | None, rework: Rework | None = None
) -> Written:
    """Convert every segment, and write files that share one file of weights."""
    onnx_ir = _library("onnx_ir")
    for segment in job.segments:
        _check_types(segment)
    with gathered_once():
        models = {
            segment.name: to_onnx(
                segment.name, segment.program, (segment.inputs, segment.outputs), opset, rework
            )
            for segment in job.segments
        }
    stored = {name: _store_weights(model, job.store) for name, model in models.items()}
    places = job.store.write(folder / WEIGHTS_FILE) if job.store.tensors else {}
    files = {}
    for name, model in models.items():
        file = f"{name}.onnx"
        _point_to(model, stored[name], places)
        onnx_ir.save(model, str(folder / file))
        files[name] = WrittenSegment(file=file)
    versions = {each: _library(each).__version__ for each in ("onnx", "onnxscript", "onnxruntime")}
    return Written(segments=files, producer=versions)


def _check_types(segment: SegmentProgram) -> None:
    for name, value in segment.values.items():
        if value.dtype.is_complex:
            raise ExportError(
                f"{name}, at an end of {segment.name}, is {value.dtype}, which ONNX lacks",
                "Make it real before the blocks (torch.view_as_real), or take the format 'aoti'",
            )
        if value.dtype not in ELEMENTS:
            raise LoweringError("onnx", segment.name, f"{name} is {value.dtype}, which it lacks")


def open_segments(
    folder: Path, plan: BundlePlan, files: Mapping[str, str], options: Mapping[str, Any]
) -> dict[str, Lowered]:
    """A session for every segment; `files` says which is whose."""
    device = device_of(options["providers"])
    options, stream = on_stream(options, device)
    return {
        segment.name: OrtSegment(
            open_session(folder / files[segment.name], options),
            inputs=segment.inputs,
            outputs=tuple((name, segment.values[name]) for name in segment.outputs),
            shapes=tuple(segment.values[name].shape for name in segment.inputs),
            device=device,
        ).on(stream)
        for segment in plan.segments
    }


def to_onnx(
    name: str,
    program: ExportedProgram,
    ends: tuple[Sequence[str], Sequence[str]],
    opset: int | None = None,
    rework: Rework | None = None,
) -> Any:
    """A program as an ONNX model in memory.

    Args:
        name: What it is called in errors.
        program: The program; its weights become initializers.
        ends: Names for inputs and for outputs.
        opset: ONNX opset version; None: torch.onnx's own choice.
        rework: Changes the model before constants are folded.

    Raises:
        MissingLibraryError: If onnx or onnxscript is not installed.
        LoweringError: If torch.onnx cannot convert it.
    """
    _library("onnx")
    _library("onnxscript")
    try:
        with warnings.catch_warnings(), torch.no_grad(), _quiet():
            # torch.onnx warns of its own deprecated calls, which users can do nothing about.
            warnings.simplefilter("ignore")
            made = torch.onnx.export(
                legal(program),
                (),
                dynamo=True,
                opset_version=opset,
                verbose=False,
                optimize=False,
            )
            if made is None:
                raise LoweringError("onnx", name, "torch.onnx gave nothing")
            written = made.model.opset_imports.get("")
            if opset is not None and written != opset:
                raise LoweringError("onnx", name, f"torch.onnx wrote opset {written}, not {opset}")
            if rework is not None:
                rework(made.model)
            optimize(made.model)
    except LoweringError:
        raise
    except Exception as error:
        raise LoweringError("onnx", name, f"{type(error).__name__}: {error}") from error
    _rename(name, made.model.graph, ends)
    return _without_notes(made.model)


def in_memory(model: Any) -> bytes:
    """An ONNX model as bytes, weights included."""
    proto = _library("onnx_ir").serde.serialize_model(model)
    return bytes(proto.SerializeToString())


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the converting libraries' notes on what they leave as it is, or could also do."""
    logs = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "onnx_ir")]
    levels = [log.level for log in logs]
    for log in logs:
        log.setLevel(logging.ERROR)
    try:
        yield
    finally:
        for log, level in zip(logs, levels, strict=True):
            log.setLevel(level)


def _rename(name: str, graph: Any, ends: tuple[Sequence[str], Sequence[str]]) -> None:
    """Give inputs and outputs their names; what else has such a name makes room.

    torch.onnx takes names too, but lets them collide with those of values inside.
    """
    named = [
        *zip(graph.inputs, ends[0], strict=True),
        *zip(graph.outputs, ends[1], strict=True),
    ]
    known, taken = {id(value) for value, _ in named}, {wanted for _, wanted in named}
    if len(known) != len(named):
        raise LoweringError("onnx", name, "an input or output is handed on unchanged")
    for node in graph.all_nodes():
        for value in node.outputs:
            if value.name in taken and id(value) not in known:
                value.name = f"{value.name}_inside"
    for at, (value, _) in enumerate(named):
        value.name = f"end_{at}_inside"  # two ends may exchange names
    for value, wanted in named:
        value.name = wanted


def _without_notes(model: Any) -> Any:
    """Drop what torch.onnx notes for debugging: stack traces with paths of this machine."""
    for part in (model, model.graph, *model.graph.all_nodes()):
        part.metadata_props.clear()
    for node in model.graph.all_nodes():
        for value in (*node.inputs, *node.outputs):
            if value is not None:
                value.metadata_props.clear()
    return model


def legal(program: ExportedProgram) -> ExportedProgram:
    """Drop squeezes of dimensions that are not 1: nothing in torch, illegal in ONNX.

    Of a dimension that varies torch takes for granted that it is not 1.
    """
    for node in list(program.graph.nodes):
        if node.target not in (aten.squeeze.dim, aten.squeeze.dims):
            continue
        value, wanted = node.args[0], node.args[1]
        sizes = value.meta["val"].shape
        axes = [wanted] if isinstance(wanted, int) else wanted
        axes = axes if sizes else []  # of a single number, which torch lets pass
        ones = [axis for axis in axes if isinstance(sizes[axis], int) and sizes[axis] == 1]
        if not ones:
            node.replace_all_uses_with(value)
            program.graph.erase_node(node)
        elif len(ones) < len(axes):
            node.args = (value, ones)
    return program


# ---- weights ----------------------------------------------------------------------------------


def _store_weights(model: Any, store: TensorStore) -> dict[str, str]:
    """Initializer -> name in the weights file, for those large enough."""
    stored = {}
    for name, value in model.graph.initializers.items():
        tensor = value.const_value
        if tensor is not None and tensor.nbytes > INLINE:
            stored[name] = store.add(name, _torch_tensor(tensor))
    return stored


def _torch_tensor(tensor: Any) -> torch.Tensor:
    """The weight itself where the model still holds it, else what constant folding made of it."""
    raw = getattr(tensor, "raw", None)
    if isinstance(raw, torch.Tensor):
        return raw
    dtype = _library("onnx_ir.tensor_adapters").to_torch_dtype(tensor.dtype)
    content = torch.frombuffer(bytearray(tensor.tobytes()), dtype=dtype)
    return content.reshape(tensor.shape.numpy())


def _point_to(model: Any, stored: Mapping[str, str], places: Mapping[str, Location]) -> None:
    onnx_ir = _library("onnx_ir")
    for name, stored_name in stored.items():
        value = model.graph.initializers[name]
        place = places[stored_name]
        value.const_value = onnx_ir.ExternalTensor(
            WEIGHTS_FILE,
            place.offset,
            place.length,
            value.const_value.dtype,
            shape=value.const_value.shape,
            name=name,
        )


def _library(name: str) -> Any:
    return optional_module(name, "export")
