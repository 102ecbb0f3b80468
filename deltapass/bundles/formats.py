"""The interface of engine formats, and the table of them.

A format writes segments into files of a bundle, and opens them again as callables. It is loaded by
dotted name, as lowerings are. A new one is a file in backends/ and a line in `FORMATS` of
deltapass/options.py.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, final

import torch
from torch.export import ExportedProgram

from deltapass.bundles.manifest import BundlePlan
from deltapass.bundles.weights_file import TensorStore
from deltapass.errors import OptionError
from deltapass.graph.executable import Lowered
from deltapass.graph.program import Macs
from deltapass.graph.sizes import Dimensions
from deltapass.options import FORMATS, check_format


@final
@dataclass(frozen=True, kw_only=True)
class SegmentProgram:
    """One segment, ready for an engine.

    Attributes:
        name: The segment's name.
        inputs: Names of its inputs; weights are not among them.
        outputs: Names of its outputs.
        program: torch.export's program; its state dict holds the weights by their model's names.
        values: Name of an input or output -> its tensor in the example call.
        shapes: Name of an input or output -> dimensions; only where they may vary.
        macs: Multiply-accumulates at the example sizes.
    """

    name: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    program: ExportedProgram
    values: Mapping[str, torch.Tensor]
    shapes: Mapping[str, Dimensions]
    macs: Macs

    @property
    def example(self) -> tuple[torch.Tensor, ...]:
        """One tensor an input."""
        return tuple(self.values[name] for name in self.inputs)


@final
@dataclass(frozen=True, kw_only=True)
class WrittenSegment:
    """What a format made of one segment: its file, and the weights to bind to it when opened."""

    file: str
    weights: Mapping[str, str] = field(default_factory=dict)


@final
@dataclass(frozen=True, kw_only=True)
class Written:
    """What a format made of all segments.

    Attributes:
        segments: Segment name -> what was written for it.
        producer: Library -> version that the files depend on.
        build: What a person may want to know of the making, as plain data.
    """

    segments: Mapping[str, WrittenSegment]
    producer: Mapping[str, str]
    build: Mapping[str, Any] = field(default_factory=dict)


@final
@dataclass(frozen=True, kw_only=True)
class Job:
    """What a format is to write.

    Attributes:
        segments: The segments, glue between them included.
        folder: Where to.
        store: Takes the weights that are to be shared; written by the format.
        dimensions: Name -> least and greatest size (None: no bound).
        options: The format's own options.
    """

    segments: Sequence[SegmentProgram]
    folder: Path
    store: TensorStore
    dimensions: Mapping[str, tuple[int, int | None]]
    options: Mapping[str, Any]


class Format(Protocol):
    """What an engine format must offer."""

    def check(self, options: Mapping[str, Any]) -> None:
        """Called before anything else is done for `write`, with its options.

        Raises:
            OptionError: If one is unknown or unfit; names what is taken.
        """

    def write(self, job: Job) -> Written:
        """Write every segment, and the weights.

        Raises:
            MissingLibraryError: If a library is not installed; names the extra.
            LoweringError: If a segment cannot be written.
        """

    def open(
        self, folder: Path, plan: BundlePlan, options: Mapping[str, Any]
    ) -> Mapping[str, Lowered]:
        """Segment name -> a callable on dense tensors, giving one tensor an output.

        Raises:
            MissingLibraryError, MissingDeviceError: If it cannot run here.
            OptionError: If an option of the format is unknown or unfit.
        """

    def open_to_verify(self, folder: Path, plan: BundlePlan) -> tuple[Mapping[str, Lowered], str]:
        """As `open`, of what can be run here; and what that is, for the record."""

    def finish(self, folder: Path, plan: BundlePlan) -> None:
        """Called when all is written and verified: removes what was only needed for that."""

    def device(self, plan: BundlePlan, options: Mapping[str, Any]) -> torch.device:
        """Where its tensors must lie."""


def load_format(name: str) -> Format:
    """Load a format from the table.

    Raises:
        OptionError: If there is no such format.
    """
    check_format(name)
    module, _, attribute = FORMATS[name].partition(":")
    made: Format = getattr(importlib.import_module(module), attribute)()
    return made


def known_options(given: Mapping[str, Any], defaults: Mapping[str, Any]) -> dict[str, Any]:
    """A format's options with defaults filled in.

    Raises:
        OptionError: If one is unknown.
    """
    for name in given:
        if name not in defaults:
            allowed = ", ".join(defaults) or "(this format has none)"
            raise OptionError(name, given[name], f"left out; options of this format: {allowed}")
    return {**defaults, **given}


def check_option(options: Mapping[str, Any], name: str, fits: bool, taken: str) -> None:
    """Refuse an option that does not fit, naming what is taken.

    Raises:
        OptionError: Unless `fits`.
    """
    if not fits:
        raise OptionError(name, options[name], taken)


def check_switches(options: Mapping[str, Any], *names: str) -> None:
    """Refuse what is neither True nor False.

    Raises:
        OptionError: Names the first.
    """
    for name in names:
        check_option(options, name, isinstance(options[name], bool), "True or False")


def is_whole(value: object) -> bool:
    """Whether it is a whole number; True and False are none."""
    return isinstance(value, int) and not isinstance(value, bool)
