"""What a plan bundle says of itself: plan.json as frozen data, and back.

A bundle is a folder: plan.json, the segments' files, and the weights, each once. The structs below
are all that is said of the file's form: msgspec checks by them what it reads, and makes of them the
JSON schema for readers in other languages, assets/plan.schema.json.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Final, TypedDict, final
from typing import Literal as Exactly

import msgspec
from msgspec import Meta, Struct

from deltapass.bundles.older import OLDER, upgraded
from deltapass.bundles.signature import Signature
from deltapass.errors import BundleError, DeltapassError
from deltapass.graph.program import Literal, Macs
from deltapass.schedule.predictors import MOST_BUFFERS
from deltapass.schedule.rules import Span
from deltapass.schedule.weights import Vectors

SCHEMA_VERSION: Final = 2
PLAN_FILE: Final = "plan.json"
SCHEMA_FILE: Final = Path(__file__).parents[1] / "assets" / "plan.schema.json"

Natural = Annotated[int, Meta(ge=0)]
Positive = Annotated[int, Meta(ge=1)]
Sha256 = Annotated[str, Meta(pattern="^[0-9a-f]{64}$")]
# As `deltapass.graph.sizes.Dimension`.
SizeOrFormula = Annotated[
    Natural | str,
    Meta(description="A size, or a formula (+ - * // %) over the names in `dimensions`."),
]


class Spec(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A part of plan.json. None of its fields may be left out."""


@final
class ValueSpec(Spec, frozen=True):
    """Type and dimensions of one value; a dimension that varies is a formula."""

    dtype: str
    shape: tuple[SizeOrFormula, ...]


@final
class InputSpec(Spec, frozen=True):
    """One input of the model. `role` is that of `deltapass.graph.program.Role`."""

    name: str
    role: Annotated[str, Meta(pattern="^(sample|timestep|per_step|data)$")]
    dtype: str
    shape: tuple[SizeOrFormula, ...]


@final
class FileSpec(Spec, frozen=True):
    """Size in bytes and SHA-256 of a file of the bundle."""

    bytes: Natural
    sha256: Sha256


@final
class WeightsSpec(TypedDict):
    """The model's weights; see `deltapass.bundles.weights_file.fingerprint`."""

    fingerprint: Sha256
    count: int
    bytes: int
    names: list[str]


@final
class SegmentSpec(Spec, frozen=True):
    """One engine file: its inputs and outputs in order, and which weights are bound to it.

    `values` gives type and dimensions of both, under the segment's own names. `weights` maps a
    constant's name in the file to a tensor's name in the weights file, for formats whose files hold
    no weights and no reference to them.
    """

    name: str
    file: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    values: Mapping[str, ValueSpec]
    weights: Mapping[str, str]
    macs: Macs


@final
class SegmentCall(Spec, frozen=True):
    """One call of a segment on named values."""

    segment: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]

    @property
    def body(self) -> str:
        """What is called, as `Executable` asks for it."""
        return self.segment


@final
class VariantSpec(Spec, frozen=True):
    """One variant: a list of calls. `spans` are those it skips, or emits the deltas of."""

    name: str
    kind: Annotated[str, Meta(pattern="^(refresh|cached)$")]
    spans: tuple[Span, ...]
    inputs: tuple[str, ...]
    calls: tuple[SegmentCall, ...]
    results: tuple[str | Literal, ...]
    deltas: tuple[str, ...]
    macs: Macs


@final
class SpanSpec(Spec, frozen=True):
    """A span that can be skipped: as wanted, as it is, and the number of its streams."""

    wanted: Span
    span: Span
    streams: Positive
    bytes: int


@final
class FitSpec(Spec, frozen=True):
    """What a refresh does to the coefficients c of a fit: c += gains * (delta - basis . c).

    `basis` has a number for every coefficient so far (none at the first refresh), `gains` one for
    every coefficient from then on; those that are new were 0.
    """

    basis: tuple[float, ...]
    gains: tuple[float, ...]


@final
class Row(Spec, frozen=True):
    """One step of the planned trajectory, and how it predicts where it is cached.

    `reads` are the refreshes whose deltas it reads, newest first. `weights` has a vector of `taken`
    numbers for every stream of the span, newest delta first, zeros for deltas that there are none
    of yet; `branches` has other ones for branches by name. `fit` stands at refreshes where the
    predictor accumulates: what is weighed then are coefficients, and not the deltas themselves.
    """

    variant: str
    reads: tuple[Natural, ...]
    weights: Vectors
    branches: Mapping[str, Vectors]
    fit: FitSpec | None


@final
class BundlePlan(Spec, frozen=True):
    """All of plan.json; docs/bundles.md says what every field means."""

    format: Annotated[str, Meta(pattern="^(onnx|aoti|tensorrt)$")]
    producer: Mapping[str, str]
    files: Mapping[str, FileSpec]
    weights: WeightsSpec
    dimensions: Mapping[str, tuple[int, int | None]]
    signature: Signature
    inputs: tuple[InputSpec, ...]
    values: Mapping[str, ValueSpec]
    segments: tuple[SegmentSpec, ...]
    variants: tuple[VariantSpec, ...]
    blocks: Positive
    spans: tuple[SpanSpec, ...]
    conditioning: tuple[str, ...]
    predictor: str
    taken: Annotated[int, Meta(ge=0, le=MOST_BUFFERS)]
    steps: Positive
    fixed_steps: bool
    schedule: Mapping[str, Any]
    table: tuple[Row, ...]
    macs: Mapping[str, float]
    attributes: Mapping[str, Any]
    build: Mapping[str, Any]
    verified: Mapping[str, Any] | None
    schema: Exactly[2]

    def segment(self, name: str) -> SegmentSpec:
        """The segment of that name."""
        return next(segment for segment in self.segments if segment.name == name)


def to_text(plan: BundlePlan) -> str:
    """plan.json as text."""
    content = msgspec.to_builtins(plan, enc_hook=dict)
    for variant in content["variants"]:
        variant["spans"] = [*map(_span_content, variant["spans"])]
    for spanned in content["spans"]:
        spanned |= {name: _span_content(spanned[name]) for name in ("wanted", "span")}
    return json.dumps(content, indent=1) + "\n"


def _span_content(span: list[Any]) -> list[Any]:
    """A span as plan.json has it, where what is kept is named unless it is a delta."""
    start, stop, keeps = span
    return [start, stop] if keeps == "delta" else span


def schema_text() -> str:
    """assets/plan.schema.json, as the structs above make it."""
    _, parts = msgspec.json.schema_components([BundlePlan], ref_template="#/$defs/{name}")
    whole = {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        **parts.pop(BundlePlan.__name__),
        "$defs": parts,
    }
    return json.dumps(whole, indent=1) + "\n"


def read_plan(folder: Path) -> BundlePlan:
    """Read and check plan.json of a bundle.

    Raises:
        BundleError: If it is missing, no JSON, of another version, or not as the schema says.
    """
    path = folder / PLAN_FILE
    content = _content(path)
    try:
        if content["schema"] == OLDER:
            content = upgraded(content)
        plan = msgspec.convert(content, BundlePlan)
        _check_whole(plan, content)
    except (msgspec.ValidationError, DeltapassError) as error:
        raise BundleError(
            f"{path} is not as its schema says: {str(error)[:200]}", "Export the model again"
        ) from error
    return plan


def _content(path: Path) -> Any:
    """The JSON of a plan.json of a version that is read."""
    folder = path.parent
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        there = "holds no plan.json" if folder.is_dir() else "does not exist"
        raise BundleError(f"{folder} {there}", "Give the folder that export wrote") from error
    except (OSError, ValueError, RecursionError) as error:
        raise BundleError(f"{path} cannot be read: {error}", "Export the model again") from error
    version = content.get("schema") if isinstance(content, dict) else None
    if type(version) is not int or version not in (OLDER, SCHEMA_VERSION):
        known = f"{OLDER} and {SCHEMA_VERSION}"
        raise BundleError(
            f"{path} has schema version {version!r}, this deltapass reads {known}",
            "Export the model again, or install the deltapass that wrote it "
            f"({_producer(content)})",
        )
    return content


def _producer(content: Any) -> str:
    known = content.get("producer") if isinstance(content, dict) else None
    return str(known.get("deltapass", "unknown")) if isinstance(known, dict) else "unknown"


def _check_whole(plan: BundlePlan, content: Mapping[str, Any]) -> None:
    """Whether the plan, written again, is what was read.

    In entries that are no `Spec` (`macs`, `weights`, literals) msgspec skips unknown keys and fills
    in defaults.
    """
    again = json.loads(to_text(plan))
    for name, value in content.items():
        if again[name] != value:
            raise msgspec.ValidationError(f"keys are missing or unknown - at `$.{name}`")
