"""Nested results: written as plain data, and built again as callers know them."""

from __future__ import annotations

import json
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from models import AdaLNDenoiser, make

import deltapass
from deltapass.bundles.results import Result, built, places_of, structure_of
from deltapass.errors import BundleError, ExportError


class Pair(NamedTuple):
    """A named tuple."""

    first: Any
    second: Any


@dataclass
class Made:
    """A result of a class of its own; what is None is no part of it."""

    sample: Any
    more: Any = None
    last: Any = None


@pytest.mark.parametrize(
    "value",
    [
        (0, [1, 2]),
        {"sample": 0, "more": (1, {"deep": [2]})},
        OrderedDict(b=0, a=1),
        Pair(0, Pair((1,), 2)),
        [{"x": 0}],
    ],
)
def test_what_is_built_is_what_was_returned(value: Any) -> None:
    structure = json.loads(json.dumps(structure_of(value)))
    places = list(places_of(structure))
    assert places == list(range(len(places)))
    tensors = [f"tensor {place}" for place in places]
    again = built(structure, tensors)
    assert structure_of(built(structure, places)) == structure, "tuples and lists are told apart"
    assert again == built(structure_of(value), tensors) and again != value


def test_an_object_has_its_fields_by_name_key_and_place() -> None:
    again = built(structure_of(Made(0, last=(1, 2))), ["x", "y", "z"])
    assert isinstance(again, Result)
    assert again.sample == again["sample"] == again[0] == "x"
    assert again.last == again[1] == again[-1] == ("y", "z")
    with pytest.raises(AttributeError, match="the model's result has no 'more'"):
        _ = again.more


@pytest.mark.parametrize("value", [{1: 0}, {0}, "text", {"a": object()}])
def test_what_cannot_be_built_again_is_refused(value: Any) -> None:
    with pytest.raises(ExportError, match="the model returns a "):
        structure_of(value)


def test_a_model_with_nested_results_is_exported_and_called_alike(tmp_path: Path) -> None:
    for library in ("onnx", "onnxscript", "onnxruntime", "safetensors"):
        pytest.importorskip(library)

    class Nested(AdaLNDenoiser):
        def forward(self, hidden_states: torch.Tensor, timestep: torch.Tensor) -> Any:
            sample = super().forward(hidden_states, timestep)
            return {"sample": sample, "more": (Pair(sample * 2, [sample + 1]),)}

    model, (x, timestep) = Nested(2).eval(), make("adaln").inputs(1.0)[0]
    path = tmp_path / "bundle"
    plan = deltapass.export(model, (x, timestep), {}, path, cached_blocks=1, steps=2)
    assert plan.verified is not None
    loaded = deltapass.load(path)
    with torch.no_grad(), deltapass.session(2) as session:
        session.step(0)
        given, wanted = loaded(x, timestep), model(x, timestep)
    assert list(given) == ["sample", "more"]
    ours, theirs = given["more"][0], wanted["more"][0]
    torch.testing.assert_close(given["sample"], wanted["sample"], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(ours.first, theirs.first, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(ours.second[0], theirs.second[0], rtol=1e-4, atol=1e-5)
    content = json.loads((path / "plan.json").read_text())
    content["signature"]["tuple_result"] = {"dict": {"sample": 0, "more": {"tuple": [1, 7]}}}
    (path / "plan.json").write_text(json.dumps(content))
    with pytest.raises(BundleError, match="does not give what the signature says"):
        deltapass.load(path)
