"""The engine cache: what two ONNX graphs must share to share an engine, and files that are whole.

The key covers operators, edges, attributes, weights, and the names of inputs and outputs, which an
engine keeps. It leaves out what an engine does not depend on: names of nodes and of inner values,
documentation, metadata, the order of weights, and whether weights lie in the file or beside it.
"""

from __future__ import annotations

import hashlib
import json
import mmap
import os
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, final

FORMAT: Final = 1  # of cache files; a file of another format is no hit


# ---- the digest of a graph ---------------------------------------------------------------------


def graph_digest(onnx_path: Path) -> str:
    """SHA-256, in hexadecimal, of an ONNX model's structure and weights.

    Weights in external files are read in place, without loading them all into memory.

    Raises:
        OSError: If the model or its external data cannot be read.
    """
    import onnx

    model = onnx.load(str(onnx_path), load_external_data=False)
    weights = Weights(onnx_path.parent)
    opsets = sorted((entry.domain or "ai.onnx", entry.version) for entry in model.opset_import)
    functions = sorted((_function(each, weights) for each in model.functions), key=json.dumps)
    return _hash([opsets, functions, _graph(model.graph, weights, {})])


@final
@dataclass(frozen=True)
class Weights:
    """Digests of tensors, which may lie in files under `folder`."""

    folder: Path

    def digest(self, tensor: Any) -> str:
        """Of a TensorProto: type, shape and bytes, wherever and however these are stored."""
        hashed = hashlib.sha256(f"{tensor.data_type} {list(tensor.dims)}".encode())
        if tensor.external_data:
            self._read_external(tensor, hashed)
        else:
            hashed.update(_inline(tensor))
        return hashed.hexdigest()

    def _read_external(self, tensor: Any, hashed: Any) -> None:
        entry = {item.key: item.value for item in tensor.external_data}
        start = int(entry.get("offset", 0))
        with (self.folder / entry["location"]).open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            length = int(entry.get("length", size - start))
            if start + length > size:
                raise OSError(f"{entry['location']} ends before tensor {tensor.name!r}")
            if length:
                mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
                with mapped, memoryview(mapped) as view, view[start : start + length] as part:
                    hashed.update(part)


def _inline(tensor: Any) -> bytes:
    """The bytes a tensor would have in an external file."""
    from onnx import TensorProto, numpy_helper

    if tensor.raw_data:
        return bytes(tensor.raw_data)
    if tensor.data_type == TensorProto.STRING:
        return repr(list(tensor.string_data)).encode()
    return bytes(numpy_helper.to_array(tensor).tobytes())


def _graph(graph: Any, weights: Weights, outer: Mapping[str, object]) -> list[object]:
    """A graph's structure as nested lists; inner values are numbered in the order they appear."""
    dims: dict[str, int] = {}
    held = {tensor.name: tensor for tensor in graph.initializer}
    sparse = {tensor.values.name: tensor for tensor in graph.sparse_initializer}
    inputs = [value for value in graph.input if value.name not in held]
    values: dict[str, object] = {**outer, "": "none"}
    values.update({value.name: ["input", value.name] for value in inputs})
    for name, tensor in held.items():
        values[name] = ["weight", weights.digest(tensor)]
    for name, tensor in sparse.items():
        values[name] = ["sparse", hashlib.sha256(_plain_bytes(tensor)).hexdigest()]
    nodes = [_node(node, weights, values) for node in graph.node]
    return [
        [[value.name, _type(value, dims)] for value in inputs],
        nodes,
        [[value.name, values[value.name], _type(value, dims)] for value in graph.output],
    ]


def _function(function: Any, weights: Weights) -> list[object]:
    values: dict[str, object] = {"": "none"}
    values.update({name: ["argument", at] for at, name in enumerate(function.input)})
    opsets = sorted((entry.domain or "ai.onnx", entry.version) for entry in function.opset_import)
    nodes = [_node(node, weights, values) for node in function.node]
    defaults = sorted(_attribute(each, weights, values) for each in function.attribute_proto)
    names = [function.domain, function.name, function.overload, *sorted(function.attribute)]
    return [names, opsets, defaults, nodes, [values[name] for name in function.output]]


def _node(node: Any, weights: Weights, values: dict[str, object]) -> list[object]:
    """A node by what it does and reads; numbers what it gives, in `values`."""
    read = [values[name] for name in node.input]
    attributes = sorted(_attribute(each, weights, values) for each in node.attribute)
    for name in node.output:
        if name:
            values[name] = len(values)
    given = [values[name] for name in node.output]
    return [node.domain, node.op_type, node.overload, read, attributes, given]


def _attribute(attribute: Any, weights: Weights, values: Mapping[str, object]) -> list[object]:
    held = [*([attribute.t] if attribute.HasField("t") else []), *attribute.tensors]
    graphs = [*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs]
    rest = type(attribute)()
    rest.CopyFrom(attribute)
    for name in ("t", "tensors", "g", "graphs", "doc_string"):
        rest.ClearField(name)
    return [
        attribute.name,
        _plain_bytes(rest).hex(),
        [weights.digest(tensor) for tensor in held],
        [_graph(graph, weights, values) for graph in graphs],
    ]


def _plain_bytes(message: Any) -> bytes:
    return bytes(message.SerializeToString(deterministic=True))


def _type(value: Any, dims: dict[str, int]) -> object:
    """Element type and shape. A dimension's name says only which dimensions are equal."""
    if not value.type.HasField("tensor_type"):
        return _plain_bytes(value.type).hex()
    kind = value.type.tensor_type
    shape: list[object] = []
    for dim in kind.shape.dim:
        if dim.HasField("dim_value"):
            shape.append(dim.dim_value)
        else:
            # A dimension without a name equals no other.
            shape.append(["free", dims.setdefault(dim.dim_param or f"\0{len(dims)}", len(dims))])
    return [kind.elem_type, shape]


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
    header = {
        "format": FORMAT,
        "key": key,
        "layers": entry.layers,
        "sha256": hashlib.sha256(entry.engine).hexdigest(),
    }
    write_whole(_file(folder, key), [json.dumps(header).encode(), b"\n", entry.engine])


def find(folder: Path, key: str) -> Entry | None:
    """A kept engine, or None if there is none or its file is damaged."""
    try:
        line, _, engine = _file(folder, key).read_bytes().partition(b"\n")
        header = json.loads(line)
        expected = (FORMAT, key, hashlib.sha256(engine).hexdigest())
        if (header["format"], header["key"], header["sha256"]) != expected:
            return None
        return Entry(engine=engine, layers=int(header["layers"]))
    except (OSError, ValueError, KeyError, TypeError):
        return None


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


def _file(folder: Path, key: str) -> Path:
    return folder / f"{key}.engine"
