"""The engine cache: what two ONNX graphs must share to share an engine, and files that are whole.

The key covers operators, edges, attributes, weights, and the names of inputs and outputs, which an
engine keeps. It leaves out what an engine does not depend on: names of nodes and of inner values,
documentation, metadata, the order of weights, and whether weights lie in the file or beside it.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, final

from deltapass.libraries import optional_module

FORMAT: Final = 1  # of cache files; a file of another format is no hit


# ---- the digest of a graph ---------------------------------------------------------------------


def graph_digest(onnx_path: Path) -> str:
    """SHA-256, in hexadecimal, of an ONNX model's structure and weights.

    Weights in external files are read one by one, without loading them all into memory.

    Raises:
        OSError: If the model or its external data cannot be read.
    """
    model = optional_module("onnx_ir", "export").load(str(onnx_path))
    inline = optional_module("onnx_ir.passes.common", "export").InlinePass()
    try:
        inline(model)  # so no function is left
        return _hash([sorted(model.opset_imports.items()), _graph(model.graph, {})])
    except (KeyError, TypeError, ValueError, NotImplementedError):
        # Sparse weights and texts, which onnx_ir gives no bytes of: the files as they are.
        return _files_digest(onnx_path, model)


def _files_digest(onnx_path: Path, model: Any) -> str:
    """Of the bytes of a model's file and of the files its weights lie in."""
    graphs = (model.graph, *model.graph.subgraphs())
    weights = (value.const_value for graph in graphs for value in graph.initializers.values())
    beside = {Path(weight.path) for weight in weights if hasattr(weight, "path")}
    files = [onnx_path, *sorted(beside)]
    return _hash([hashlib.sha256(file.read_bytes()).hexdigest() for file in files])


def _graph(graph: Any, known: dict[Any, object]) -> list[object]:
    """A graph's structure as nested lists.

    Args:
        graph: Of onnx_ir.
        known: Value -> what it is: an input or a weight, or the number of its place. Inner graphs
            read the values of outer ones.
    """
    dims: dict[object, int] = {}
    inputs = [value for value in graph.inputs if value.name not in graph.initializers]
    known.update((value, ["input", value.name]) for value in inputs)
    known.update(
        (value, ["weight", _digest(value.const_value)]) for value in graph.initializers.values()
    )
    nodes = [_node(node, known) for node in graph]
    return [
        [[value.name, _type(value, dims)] for value in inputs],
        nodes,
        [[value.name, known[value], _type(value, dims)] for value in graph.outputs],
    ]


def _node(node: Any, known: dict[Any, object]) -> list[object]:
    """A node by what it does and reads; numbers what it gives, in `known`."""
    read = [None if value is None else known[value] for value in node.inputs]
    attributes = sorted(node.attributes.items())
    told = [[name, _attribute(attribute, known)] for name, attribute in attributes]
    for value in node.outputs:
        known[value] = len(known)
    given = [bool(value.name) and known[value] for value in node.outputs]
    return [node.domain, node.op_type, node.overload, read, told, given]


def _attribute(attribute: Any, known: dict[Any, object]) -> object:
    """An attribute as plain data."""
    try:
        return _plain(attribute.value, known)
    except _UnknownValueError:
        serde = optional_module("onnx_ir", "export").serde
        plain: str = serde.serialize_attribute(attribute).SerializeToString().hex()
        return plain


@final
class _UnknownValueError(Exception):
    """An attribute of a type whose text may not tell all of it."""


def _plain(value: Any, known: dict[Any, object]) -> object:
    """The value of an attribute as plain data."""
    ir = optional_module("onnx_ir", "export")
    if isinstance(value, ir.Graph):
        return _graph(value, known)
    if isinstance(value, ir.TensorProtocol):
        return _digest(value)
    if isinstance(value, list | tuple):
        return [_plain(each, known) for each in value]
    if not isinstance(value, int | float | str | bytes):
        raise _UnknownValueError
    return repr(value)


def _digest(tensor: Any) -> str:
    """Of a tensor's type, shape and bytes, wherever and however these are stored."""
    path, start = getattr(tensor, "path", None), getattr(tensor, "offset", None) or 0
    if path is not None and Path(path).stat().st_size < start + tensor.nbytes:
        raise OSError(f"{Path(path).name} ends before tensor {tensor.name!r}")
    hashed = hashlib.sha256(f"{tensor.dtype} {tensor.shape}".encode())
    hashed.update(tensor.tobytes())
    return hashed.hexdigest()


def _type(value: Any, dims: dict[object, int]) -> list[object]:
    """Element type and shape. A dimension's name says only which dimensions are equal."""
    if value.shape is None:
        return [str(value.type), None]
    names = [size if isinstance(size, int) else size.value or object() for size in value.shape]
    sizes = [n if isinstance(n, int) else ["free", dims.setdefault(n, len(dims))] for n in names]
    return [str(value.type), sizes]


def _hash(value: object) -> str:
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()


def key_of(parts: Iterable[object]) -> str:
    """The cache key of everything an engine depends on; parts must be plain values."""
    return _hash(list(parts))


# ---- the files ---------------------------------------------------------------------------------


@final
@dataclass(frozen=True, kw_only=True, slots=True)
class Entry:
    """An engine as it is kept, with the number of layers of its network."""

    engine: bytes
    layers: int


def store(folder: Path, key: str, entry: Entry) -> None:
    """Keep an engine: one line that describes it, then its bytes. Readers see all of it or none.

    Raises:
        OSError: If the folder cannot be written.
    """
    write_whole(_file(folder, key), [_header(key, entry), b"\n", entry.engine])


def find(folder: Path, key: str) -> Entry | None:
    """A kept engine, or None if there is none or its file is damaged."""
    try:
        line, _, engine = _file(folder, key).read_bytes().partition(b"\n")
        entry = Entry(engine=engine, layers=int(json.loads(line)["layers"]))
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return entry if line == _header(key, entry) else None


def _file(folder: Path, key: str) -> Path:
    return folder / f"{key}.engine"


def _header(key: str, entry: Entry) -> bytes:
    digest = hashlib.sha256(entry.engine).hexdigest()
    told = {"format": FORMAT, "key": key, "layers": entry.layers, "sha256": digest}
    return json.dumps(told).encode()


def write_whole(path: Path, parts: Sequence[bytes]) -> None:
    """Write a file that other processes never see half-written.

    Raises:
        OSError: If it cannot be written; nothing is left behind.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, made = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.writelines(parts)
        Path(made).replace(path)
    except BaseException:
        with suppress(OSError):
            Path(made).unlink()
        raise
