"""The weights of a bundle: every tensor once, in one safetensors file that can be mapped.

safetensors is a length (8 bytes, little-endian), a JSON header of that length, and the data of
every tensor one after another: engines that take a file, an offset and a length (ONNX external
data) read the same file.
"""

from __future__ import annotations

import hashlib
import json
import operator
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, final

import torch

from deltapass.errors import BundleError, ExportError
from deltapass.libraries import needs

WEIGHTS_FILE: Final = "weights.safetensors"


@final
@dataclass(frozen=True, slots=True)
class Location:
    """Where a tensor's bytes lie in the file."""

    offset: int
    length: int


@final
@dataclass
class TensorStore:
    """Collects tensors under names; equal contents are kept once.

    Two weights may share one tensor (tied embeddings), and several engines one constant.
    """

    tensors: dict[str, torch.Tensor] = field(default_factory=dict)
    _names: dict[str, str] = field(default_factory=dict)
    _digests: dict[int, tuple[torch.Tensor, str]] = field(default_factory=dict)

    def add(self, name: str, tensor: torch.Tensor) -> str:
        """Keep a tensor; gives the name under which its contents are stored."""
        known = self._digest(tensor)
        if known not in self._names:
            stored, alike = name, 1
            while stored in self.tensors:
                stored, alike = f"{name}.{alike}", alike + 1
            self._names[known], self.tensors[stored] = stored, tensor
        return self._names[known]

    def _digest(self, tensor: torch.Tensor) -> str:
        # The tensor is kept, so that its identity stays its own.
        if id(tensor) not in self._digests:
            self._digests[id(tensor)] = tensor, digest(tensor)
        return self._digests[id(tensor)][1]

    def write(self, path: Path) -> dict[str, Location]:
        """Write all tensors; gives where each lies.

        Raises:
            MissingLibraryError: If safetensors is not installed.
            ExportError: If the file cannot be written, as on a full disk.
        """
        with needs("safetensors", "export"):
            from safetensors import SafetensorError
            from safetensors.torch import save_file
        whole = {name: tensor.detach().cpu().contiguous() for name, tensor in self.tensors.items()}
        try:
            save_file(_unshared(whole), str(path))
        except SafetensorError as error:
            fact = f"{path.parent.name}/{path.name} cannot be written: {error}"
            raise ExportError(fact, "Choose another place") from error
        path.chmod(0o644)  # it makes its files private
        return locations(path)


def digest(tensor: torch.Tensor) -> str:
    """SHA-256 of a tensor's type, shape and contents."""
    plain = tensor.detach().cpu().contiguous()
    found = hashlib.sha256(f"{plain.dtype} {tuple(plain.shape)}".encode())
    if plain.numel():
        found.update(plain.reshape(-1).view(torch.uint8).numpy().data)
    return found.hexdigest()


def fingerprint(tensors: Mapping[str, torch.Tensor]) -> str:
    """SHA-256 over names and contents of weights: equal for equal weights only."""
    lines = (f"{name} {digest(tensor)}\n" for name, tensor in sorted(tensors.items()))
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def read_tensors(path: Path) -> dict[str, torch.Tensor]:
    """All tensors of a file, mapped into memory rather than read.

    Raises:
        MissingLibraryError: If safetensors is not installed.
        BundleError: If the file is no safetensors file.
    """
    with needs("safetensors", "export"):
        from safetensors import SafetensorError
        from safetensors.torch import load_file
    try:
        return dict(load_file(str(path)))
    except SafetensorError as error:
        raise BundleError(f"{path} cannot be read: {error}", "Export the model again") from error


def locations(path: Path) -> dict[str, Location]:
    """Where each tensor's bytes lie in a safetensors file."""
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(length))
    return {
        name: Location(8 + length + entry["data_offsets"][0], _span(entry["data_offsets"]))
        for name, entry in header.items()
        if name != "__metadata__"
    }


def _span(offsets: list[int]) -> int:
    return offsets[1] - offsets[0]


def _unshared(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Views of one storage get memory of their own, which the format demands."""
    seen: set[int] = set()
    apart = {}
    for name, tensor in tensors.items():
        storage = tensor.untyped_storage()
        whole = storage.nbytes() == tensor.nbytes and storage.data_ptr() not in seen
        seen.add(storage.data_ptr())
        apart[name] = tensor if whole else tensor.clone()
    return apart


def tensor_at(model: torch.nn.Module, path: str) -> torch.Tensor | None:
    """The tensor a model holds under a name: parameter, buffer or plain attribute."""
    try:
        found = operator.attrgetter(path)(model)
    except AttributeError:
        return None
    return found if isinstance(found, torch.Tensor) else None
