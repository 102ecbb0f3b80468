"""What a plan bundle says of itself: plan.json as frozen data, and back.

The file is checked against a JSON schema, assets/plan.schema.json, which docs/bundles.md explains.
A bundle is a folder: plan.json, the segments' files, and the weights, each once.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, final

from deltapass.bundles.signature import Signature
from deltapass.errors import BundleError
from deltapass.graph.program import Literal, Macs
from deltapass.graph.sizes import Dimension
from deltapass.libraries import needs
from deltapass.schedule.rules import Span

SCHEMA_VERSION: Final = 1
PLAN_FILE: Final = "plan.json"
SCHEMA_FILE: Final = Path(__file__).parents[1] / "assets" / "plan.schema.json"


@final
@dataclass(frozen=True, kw_only=True, slots=True)
class ValueSpec:
    """Type and dimensions of one value; a dimension that varies is a formula."""

    dtype: str
    shape: tuple[Dimension, ...]


@final
@dataclass(frozen=True, kw_only=True, slots=True)
class InputSpec:
    """One input of the model. `role` is that of `deltapass.graph.program.Role`."""

    name: str
    role: str
    dtype: str
    shape: tuple[Dimension, ...]


@final
@dataclass(frozen=True, kw_only=True, slots=True)
class FileSpec:
    """Size in bytes and SHA-256 of a file of the bundle."""

    bytes: int
    sha256: str


@final
@dataclass(frozen=True, kw_only=True, slots=True)
class SegmentSpec:
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
@dataclass(frozen=True, kw_only=True, slots=True)
class SegmentCall:
    """One call of a segment on named values."""

    segment: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]

    @property
    def body(self) -> str:
        """What is called, as `Executable` asks for it."""
        return self.segment


@final
@dataclass(frozen=True, kw_only=True, slots=True)
class VariantSpec:
    """One variant: a list of calls. `spans` are those it skips, or emits the deltas of."""

    name: str
    kind: str
    spans: tuple[Span, ...]
    inputs: tuple[str, ...]
    calls: tuple[SegmentCall, ...]
    results: tuple[str | Literal, ...]
    deltas: tuple[str, ...]
    macs: Macs


@final
@dataclass(frozen=True, kw_only=True, slots=True)
class SpanSpec:
    """A span that can be skipped: as wanted, as it is, and the number of its streams."""

    wanted: Span
    span: Span
    streams: int
    bytes: int


@final
@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """One step of the planned trajectory. `trend` is the w of the linear extrapolation."""

    variant: str
    trend: float | None = None


@final
@dataclass(frozen=True, kw_only=True)
class BundlePlan:
    """All of plan.json; docs/bundles.md says what every field means."""

    format: str
    producer: Mapping[str, str]
    files: Mapping[str, FileSpec]
    weights: Mapping[str, Any]
    dimensions: Mapping[str, tuple[int, int | None]]
    signature: Signature
    inputs: tuple[InputSpec, ...]
    values: Mapping[str, ValueSpec]
    segments: tuple[SegmentSpec, ...]
    variants: tuple[VariantSpec, ...]
    blocks: int
    spans: tuple[SpanSpec, ...]
    conditioning: tuple[str, ...]
    order: int
    steps: int
    fixed_steps: bool
    schedule: Mapping[str, Any]
    table: tuple[Row, ...]
    macs: Mapping[str, float]
    attributes: Mapping[str, Any]
    build: Mapping[str, Any] = field(default_factory=dict)
    verified: Mapping[str, Any] | None = None
    schema: int = SCHEMA_VERSION

    def segment(self, name: str) -> SegmentSpec:
        """The segment of that name."""
        return next(segment for segment in self.segments if segment.name == name)


def to_text(plan: BundlePlan) -> str:
    """plan.json as text."""
    return json.dumps(plan, default=_plain, indent=1) + "\n"


def read_plan(folder: Path) -> BundlePlan:
    """Read and check plan.json of a bundle.

    Raises:
        BundleError: If it is missing, no JSON, of another version, or not as the schema says.
        MissingLibraryError: If jsonschema is not installed.
    """
    path = folder / PLAN_FILE
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        there = "holds no plan.json" if folder.is_dir() else "does not exist"
        raise BundleError(f"{folder} {there}", "Give the folder that export wrote") from error
    except (OSError, ValueError, RecursionError) as error:
        raise BundleError(f"{path} cannot be read: {error}", "Export the model again") from error
    version = content.get("schema") if isinstance(content, dict) else None
    if version != SCHEMA_VERSION:
        raise BundleError(
            f"{path} has schema version {version!r}, this deltapass reads {SCHEMA_VERSION}",
            "Export the model again, or install the deltapass that wrote it "
            f"({_producer(content)})",
        )
    _check_schema(path, content)
    return _parsed(content)


def _producer(content: Any) -> str:
    known = content.get("producer") if isinstance(content, dict) else None
    return str(known.get("deltapass", "unknown")) if isinstance(known, dict) else "unknown"


def _check_schema(path: Path, content: Any) -> None:
    with needs("jsonschema", "export"):
        import jsonschema
    schema = json.loads(SCHEMA_FILE.read_text(encoding="utf-8"))
    problem = jsonschema.exceptions.best_match(
        jsonschema.Draft202012Validator(schema).iter_errors(content)
    )
    if problem is not None:
        raise BundleError(
            f"{path} is not as its schema says: {problem.json_path}: {problem.message[:200]}",
            "Export the model again",
        )


# ---- plain data -------------------------------------------------------------------------------


def _plain(value: Any) -> Any:
    """What JSON does not know itself."""
    if isinstance(value, Span):
        return [value.start, value.stop]
    if isinstance(value, Literal):
        return {"literal": value.value}
    if isinstance(value, Mapping):
        return dict(value)
    return {name: getattr(value, name) for name in value.__dataclass_fields__}


def _parsed(content: Mapping[str, Any]) -> BundlePlan:
    given = dict(content)
    return BundlePlan(
        **{
            **given,
            "files": {name: FileSpec(**entry) for name, entry in given["files"].items()},
            "dimensions": {name: tuple(ends) for name, ends in given["dimensions"].items()},
            "signature": _signature(given["signature"]),
            "inputs": tuple(InputSpec(**_tuples(entry)) for entry in given["inputs"]),
            "values": {n: ValueSpec(**_tuples(entry)) for n, entry in given["values"].items()},
            "segments": tuple(_segment(entry) for entry in given["segments"]),
            "variants": tuple(_variant(entry) for entry in given["variants"]),
            "spans": tuple(_span(entry) for entry in given["spans"]),
            "conditioning": tuple(given["conditioning"]),
            "table": tuple(Row(**row) for row in given["table"]),
        }
    )


def _tuples(entry: Mapping[str, Any]) -> dict[str, Any]:
    return {name: tuple(v) if isinstance(v, list) else v for name, v in entry.items()}


def _signature(entry: Mapping[str, Any]) -> Signature:
    return Signature(**{**entry, "parameters": tuple(entry["parameters"])})


def _segment(entry: Mapping[str, Any]) -> SegmentSpec:
    values = {name: ValueSpec(**_tuples(value)) for name, value in entry["values"].items()}
    return SegmentSpec(**{**_tuples(entry), "values": values, "macs": Macs(**entry["macs"])})


def _variant(entry: Mapping[str, Any]) -> VariantSpec:
    results = (Literal(r["literal"]) if isinstance(r, dict) else r for r in entry["results"])
    return VariantSpec(
        **{
            **_tuples(entry),
            "spans": tuple(Span(*ends) for ends in entry["spans"]),
            "calls": tuple(SegmentCall(**_tuples(call)) for call in entry["calls"]),
            "results": tuple(results),
            "macs": Macs(**entry["macs"]),
        }
    )


def _span(entry: Mapping[str, Any]) -> SpanSpec:
    ends = {"wanted": Span(*entry["wanted"]), "span": Span(*entry["span"])}
    return SpanSpec(**{**entry, **ends})
