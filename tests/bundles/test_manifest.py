"""plan.json: what is written is read back equal, and what is not as the schema says is refused."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import fields, replace

from deltapass.bundles.manifest import (
    PLAN_FILE,
    SCHEMA_FILE,
    SCHEMA_VERSION,
    BundlePlan,
    FileSpec,
    FitSpec,
    InputSpec,
    Row,
    SegmentCall,
    SegmentSpec,
    SpanSpec,
    ValueSpec,
    VariantSpec,
    read_plan,
    schema_text,
    to_text,
)
from deltapass.bundles.signature import Signature
from deltapass.errors import BundleError
from deltapass.graph.program import Literal, Macs
from deltapass.schedule.rules import Span

DIGEST = "0123456789abcdef" * 4
MOVING = ("batch", 4)
VALUES = {"x": ValueSpec(dtype="float32", shape=MOVING), "out": ValueSpec(dtype="bool", shape=())}

FIT = FitSpec(basis=(1.0,), gains=(0.75, 0.5))

PLAN = BundlePlan(
    format="onnx",
    producer={"deltapass": "0.1.0", "torch": "2.13"},
    files={"prologue.onnx": FileSpec(bytes=12, sha256=DIGEST)},
    weights={"fingerprint": DIGEST, "count": 1, "bytes": 16, "names": ["out.weight"]},
    dimensions={"batch": (1, 8), "tokens": (2, None)},
    signature=Signature(
        parameters=("x", "timestep", "return_dict"),
        template={"x": {"input": "x"}, "deep": {"list": [None, {"input": "y"}], "n": 1.5}},
        defaults={"return_dict": True, "scale": 1.0},
        tuple_result=True,
    ),
    inputs=(InputSpec(name="x", role="sample", dtype="float32", shape=MOVING),),
    values=VALUES,
    segments=(
        SegmentSpec(
            name="prologue",
            file="prologue.onnx",
            inputs=("x",),
            outputs=("out",),
            values=VALUES,
            weights={"constant": "out.weight"},
            macs=Macs(1.0, 2.5),
        ),
    ),
    variants=(
        VariantSpec(
            name="refresh_1_3",
            kind="refresh",
            spans=(Span(1, 3), Span(0, 2, "feature")),
            inputs=("x",),
            calls=(SegmentCall(segment="prologue", inputs=("x",), outputs=("out",)),),
            results=("out", Literal(None), Literal(3), Literal("text")),
            deltas=("delta_1_3_0",),
            macs=Macs(1.0, 2.5),
        ),
    ),
    blocks=4,
    spans=(SpanSpec(wanted=Span(0, 3), span=Span(1, 3), streams=2, bytes=64),),
    conditioning=("labels",),
    predictor="linear",
    taken=2,
    steps=3,
    fixed_steps=False,
    schedule={"interval": 2, "boundary": 0.5, "predictor": "linear"},
    table=(
        Row(variant="refresh_1_3", reads=(), weights=(), branches={}, fit=FIT),
        Row(
            variant="cached_1_3",
            reads=(2, 0),
            weights=((1.5, -0.5), (1.25, -0.25)),
            branches={"cond": ((1.0, 0.0), (0.5, 0.5))},
            fit=None,
        ),
    ),
    macs={"paper": 1.0, "full": 2.5},
    attributes={"config": {"in_channels": 4}, "dtype": "float32", "class": "Toy"},
    build={"engine": "none"},
    verified=None,
    schema=SCHEMA_VERSION,
)
CONTENT: dict[str, Any] = json.loads(to_text(PLAN))
REQUIRED = tuple(json.loads(SCHEMA_FILE.read_text())["required"])
# Fields that hold plain data of any kind below their own level.
FREE = {"schedule", "attributes", "build", "verified", "macs", "producer"}


def put(folder: Path, content: Any) -> Path:
    """Write plan.json."""
    (folder / PLAN_FILE).write_text(json.dumps(content), encoding="utf-8")
    return folder


def refuses(folder: Path, content: Any, match: str) -> None:
    with pytest.raises(BundleError, match=match):
        read_plan(put(folder, content))


# ---- round trip --------------------------------------------------------------------------------


def test_what_is_written_is_read_back_equal(tmp_path: Path) -> None:
    (tmp_path / PLAN_FILE).write_text(to_text(PLAN), encoding="utf-8")
    assert read_plan(tmp_path) == PLAN
    assert to_text(read_plan(tmp_path)) == to_text(PLAN)


def test_a_verified_plan_too(tmp_path: Path) -> None:
    verified = replace(PLAN, verified={"tolerance": 2e-5, "segments": {"prologue": 1e-7}})
    (tmp_path / PLAN_FILE).write_text(to_text(verified), encoding="utf-8")
    assert read_plan(tmp_path) == verified


def test_types_that_json_lacks_come_back(tmp_path: Path) -> None:
    plan = read_plan(put(tmp_path, CONTENT))
    assert plan.variants[0].spans == (Span(1, 3), Span(0, 2, "feature"))
    assert plan.variants[0].results[1:3] == (Literal(None), Literal(3))
    assert plan.dimensions["tokens"] == (2, None)
    assert plan.table[0].fit == FIT and plan.table[1].fit is None
    assert plan.table[1].weights == ((1.5, -0.5), (1.25, -0.25))
    assert plan.segment("prologue").macs == Macs(1.0, 2.5)
    assert plan.variants[0].calls[0].body == "prologue"


def test_text_outside_ascii_is_kept(tmp_path: Path) -> None:
    named = replace(PLAN, attributes={**PLAN.attributes, "class": "D\u00e9bruiteur \u4e2d"})
    (tmp_path / PLAN_FILE).write_text(to_text(named), encoding="utf-8")
    assert read_plan(tmp_path) == named


def test_a_span_says_what_is_kept_unless_it_is_a_delta() -> None:
    content = json.loads(to_text(PLAN))
    assert content["variants"][0]["spans"] == [[1, 3], [0, 2, "feature"]]
    assert content["spans"][0]["span"] == [1, 3]


# ---- the schema --------------------------------------------------------------------------------


def test_the_schema_is_that_of_the_structs() -> None:
    again = "SCHEMA_FILE.write_text(schema_text())"
    assert SCHEMA_FILE.read_text() == schema_text(), f"write it anew: {again}"


def test_the_schema_states_every_field_of_the_plan() -> None:
    schema = json.loads(SCHEMA_FILE.read_text())
    assert set(REQUIRED) == set(schema["properties"]) == {field.name for field in fields(PLAN)}
    assert schema["additionalProperties"] is False


@pytest.mark.parametrize("name", [name for name in REQUIRED if name != "schema"])
def test_every_field_must_be_there_and_of_its_type(name: str, tmp_path: Path) -> None:
    without = {key: value for key, value in CONTENT.items() if key != name}
    refuses(tmp_path, without, f"missing required field `{name}`")
    for wrong in ("text", 7.5, ["list"], {"key": []}, None, True):
        if _plainly_wrong(CONTENT[name], wrong) and not (name == "verified" and wrong is None):
            refuses(tmp_path, {**CONTENT, name: wrong}, "not as its schema says")


def _plainly_wrong(right: Any, wrong: Any) -> bool:
    """Whether the two are of different kinds; contents of dictionaries are tried below."""
    return type(right) is not type(wrong) and not (right is None and isinstance(wrong, dict))


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Paths of all fields of the objects inside."""
    if path and path[0] in FREE:
        return
    keyed = isinstance(value, dict)
    items = value.items() if keyed else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        if keyed and path:
            yield (*path, key)
        yield from places(item, (*path, key))


def without(content: Any, path: tuple[Any, ...]) -> Any:
    changed = copy.deepcopy(content)
    inner = changed
    for key in path[:-1]:
        inner = inner[key]
    del inner[path[-1]]
    return changed


def open_mapping(path: tuple[Any, ...]) -> bool:
    """Whether the last key is a name of the model's, of which there may be any number."""
    if path[:1] == ("signature",):
        return len(path) > 2
    named = ("files", "dimensions", "values", "weights")
    if path[:1] == ("table",) and "branches" in path:
        return len(path) > 3
    return (len(path) == 2 and path[0] in named[:3]) or (
        path[0] == "segments" and len(path) == 4 and path[2] in named
    )


INNER = [p for p in places(CONTENT) if not open_mapping(p)]


def test_the_fields_tried_are_those_inside() -> None:
    assert ("variants", 0, "calls", 0, "segment") in INNER
    assert ("segments", 0, "values", "x", "dtype") in INNER
    assert ("spans", 0, "wanted") in INNER and ("signature", "template") in INNER
    assert ("files", "prologue.onnx", "sha256") in INNER and ("weights", "names") in INNER


@pytest.mark.parametrize("path", INNER, ids=lambda path: ".".join(map(str, path)))
def test_every_inner_field_must_be_there_and_of_its_type(
    path: tuple[Any, ...], tmp_path: Path
) -> None:
    refuses(tmp_path, without(CONTENT, path), "not as its schema says")
    if path[-1] == "literal":
        return  # which may be anything
    changed = copy.deepcopy(CONTENT)
    inner = changed
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = {"no": ["such", "thing"]}
    free = ("weights", "values", "template", "defaults", "branches")
    if path[0] != "signature" and path[-1] not in free:
        refuses(tmp_path, changed, "not as its schema says")
    inner[path[-1]] = None
    if path[-1] != "fit":
        refuses(tmp_path, changed, "not as its schema says")


def test_an_unknown_field_is_refused(tmp_path: Path) -> None:
    refuses(tmp_path, {**CONTENT, "extra": 1}, "unknown field `extra`")
    changed = copy.deepcopy(CONTENT)
    changed["variants"][0]["calls"][0]["extra"] = 1
    refuses(tmp_path, changed, "unknown field `extra`")


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("format",), "openvino"),
        (("taken",), 5),
        (("blocks",), 0),
        (("steps",), 0),
        (("files", "prologue.onnx", "sha256"), DIGEST[:-1]),
        (("files", "prologue.onnx", "bytes"), -1),
        (("spans", 0, "span"), [1]),
        (("spans", 0, "span"), [1, 2, 3]),
        (("spans", 0, "span"), [-1, 2]),
        (("spans", 0, "streams"), 0),
        (("variants", 0, "kind"), "skipped"),
        (("inputs", 0, "role"), "weight"),
        (("inputs", 0, "shape"), [-1]),
        (("dimensions", "batch"), [1]),
        (("dimensions", "batch"), [None, 1]),
        (("table", 1, "weights"), [1.0, 2.0]),
        (("table", 1, "branches"), {"cond": [["half"]]}),
        (("table", 1, "reads"), [-1]),
    ],
)
def test_values_outside_their_range_are_refused(
    path: tuple[Any, ...], value: object, tmp_path: Path
) -> None:
    changed = copy.deepcopy(CONTENT)
    inner = changed
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = value
    refuses(tmp_path, changed, "not as its schema says")


# ---- what is no plan ---------------------------------------------------------------------------


@pytest.mark.parametrize("version", [0, 3, "1", None, [1], True, 2.0])
def test_another_version_names_both_and_who_wrote_it(version: object, tmp_path: Path) -> None:
    text = rf"version {version!r}, this deltapass reads 1 and {SCHEMA_VERSION}".replace("[", r"\[")
    later = {**CONTENT, "schema": version, "producer": {"deltapass": "9.8.7"}}
    refuses(tmp_path, later, rf"{text}.*install the deltapass that wrote it \(9\.8\.7\)")
    refuses(tmp_path, {"schema": version, "producer": "me"}, r"that wrote it \(unknown\)")


@pytest.mark.parametrize("content", [[], "text", 3, None, {}, {"producer": {}}])
def test_other_json_has_no_version(content: object, tmp_path: Path) -> None:
    refuses(tmp_path, content, "has schema version None")


@pytest.mark.parametrize("data", [b"", b"{", b"\xff\xfe", to_text(PLAN).encode()[:-40]])
def test_what_is_no_json_cannot_be_read(data: bytes, tmp_path: Path) -> None:
    (tmp_path / PLAN_FILE).write_bytes(data)
    with pytest.raises(BundleError, match=r"plan\.json cannot be read"):
        read_plan(tmp_path)


def test_a_place_without_a_plan_is_told_from_no_place(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match=r"holds no plan\.json"):
        read_plan(tmp_path)
    with pytest.raises(BundleError, match="nowhere does not exist"):
        read_plan(tmp_path / "nowhere")
    (tmp_path / "file").write_text("")
    with pytest.raises(BundleError, match="cannot be read"):
        read_plan(tmp_path / "file")
