"""Real architectures from their configurations alone, on meta tensors: no weights, no memory."""

from __future__ import annotations

import functools
import tomllib
from typing import Any, Final, final

import msgspec
import torch

from deltapass.bench.macs.counting import ModuleMacs, count_call
from deltapass.bench.paper import FOLDER
from deltapass.libraries import optional_module

BATCH: Final = "B"  # stands in shapes for the samples of a call


@final
class Architecture(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A class of diffusers and its numbers.

    Attributes:
        title: With the size of images and of prompts.
        kind: Name of the class.
        config: Its keyword arguments.
        inputs: Names of inputs -> shapes, in which BATCH may stand; nested where inputs are.
        blocks: Path of the list of blocks that a schedule counts in; "" where there is none.
        gated: Paths of what a gate of cross-attention leaves out.
        cached: Paths of what a cached step between two places still runs.
    """

    title: str
    kind: str = msgspec.field(name="class")
    config: dict[str, Any]
    inputs: dict[str, Any]
    blocks: str = ""
    gated: tuple[str, ...] = ()
    cached: tuple[str, ...] = ()

    def build(self) -> torch.nn.Module:
        """The model on meta tensors.

        Raises:
            MissingLibraryError: If diffusers is not installed.
        """
        made = getattr(optional_module("diffusers", "demo"), self.kind)
        with torch.device("meta"):
            model: torch.nn.Module = made(**self.config)
        return model.eval().requires_grad_(False)

    def count(self, batch: int) -> ModuleMacs:
        """MACs of one call with so many samples.

        Raises:
            MissingLibraryError: If diffusers is not installed.
        """
        return count_call(self.build(), _inputs(self.inputs, batch))


@functools.cache
def counts_file() -> dict[str, Any]:
    """The file of architectures and of what the paper's rows run."""
    return tomllib.loads((FOLDER / "counts.toml").read_text())


@functools.cache
def architecture(name: str) -> Architecture:
    """One of the file's."""
    return msgspec.convert(counts_file()["architectures"][name], Architecture)


@functools.cache
def counted(name: str, batch: int) -> ModuleMacs:
    """One of the file's, counted once a process."""
    return architecture(name).count(batch)


def _inputs(shapes: dict[str, Any], batch: int) -> dict[str, Any]:
    def made(shape: Any) -> Any:
        if isinstance(shape, dict):
            return _inputs(shape, batch)
        sizes = [batch if size == BATCH else size for size in shape]
        # Of one number a sample is a timestep or a label, and those are whole.
        kind = torch.int64 if len(sizes) == 1 else torch.float32
        return torch.empty(sizes, dtype=kind, device="meta")

    return {name: made(shape) for name, shape in shapes.items()}
