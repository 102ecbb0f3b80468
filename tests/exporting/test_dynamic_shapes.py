"""Which dimensions of an example call may vary."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from torch.export import Dim

from deltapass.errors import DynamicShapeError
from deltapass.exporting.dynamic_shapes import free_dimensions

TOKENS = Dim("tokens", min=2, max=8)


def call() -> dict[str, Any]:
    """Two samples; a list and a dictionary of tensors, a number, and a tensor of no batch."""
    return {
        "sample": torch.zeros(2, 4, 3),
        "timestep": torch.zeros(()),
        "residuals": [torch.zeros(2, 5), torch.zeros(3, 5)],
        "embeds": {"text": torch.zeros(2, 6), "scale": 2.0},
        "mask": None,
    }


def test_nothing_varies_unless_asked() -> None:
    assert free_dimensions(call(), None, None) == ({},) * 7


def test_batch_is_the_first_dimension_of_every_tensor_that_has_it() -> None:
    found = free_dimensions(call(), None, (1, 4))
    assert [list(dims) for dims in found] == [[0], [], [0], [], [0], [], []]
    assert {(dim.__name__, dim.min, dim.max) for dims in found for dim in dims.values()} == {
        ("batch", 1, 4)
    }


@pytest.mark.parametrize("given", [{1: TOKENS}, (None, TOKENS, None), [None, TOKENS, None]])
def test_both_of_torchs_forms_for_one_tensor(given: Any) -> None:
    found = free_dimensions(call(), {"sample": given}, None)
    assert found == ({1: TOKENS}, *({},) * 6)


def test_tensors_in_lists_and_dictionaries_and_a_batch_beside() -> None:
    asked = {"residuals": [None, {1: TOKENS}], "embeds": {"text": {1: TOKENS}, "scale": None}}
    found = free_dimensions(call(), asked, (1, 4))
    assert [sorted(dims) for dims in found] == [[0], [], [0], [1], [0, 1], [], []]


def test_what_is_asked_for_a_dimension_comes_before_the_batch() -> None:
    other = Dim("other", min=1, max=9)
    assert free_dimensions(call(), {"sample": {0: other}}, (1, 4))[0] == {0: other}


@pytest.mark.parametrize("fixed", [None, 2, Dim.STATIC])
@pytest.mark.parametrize("at", [0, -3])
def test_a_tensor_may_be_left_out_of_the_batch(fixed: Any, at: int) -> None:
    found = free_dimensions(call(), {"sample": {at: fixed}}, (1, 4))
    assert [list(dims) for dims in found] == [[], [], [0], [], [0], [], []]


def test_dimensions_may_be_counted_from_the_end() -> None:
    assert free_dimensions(call(), {"sample": {-2: TOKENS}}, None)[0] == {1: TOKENS}


@pytest.mark.parametrize("dim", [Dim.AUTO, Dim.DYNAMIC])
def test_hints_are_refused(dim: Any) -> None:
    with pytest.raises(DynamicShapeError, match="dimension 1 of sample is DimHint"):
        free_dimensions(call(), {"sample": {1: dim}}, None)


def test_multiples_are_taken_and_sums_refused() -> None:
    assert list(free_dimensions(call(), {"sample": {1: 2 * TOKENS}}, None)[0]) == [1]
    with pytest.raises(DynamicShapeError, match="or a multiple of one"):
        free_dimensions(call(), {"sample": {1: TOKENS + 1}}, None)


@pytest.mark.parametrize(
    ("dynamic", "text"),
    [
        ([], "dynamic_shapes is []. Give {parameter"),
        ({5: {}}, "dynamic dimensions of 5, which"),
        ({"other": {}}, "dynamic dimensions of other, which the example call does not have"),
        ({"residuals": [None]}, "dynamic_shapes of residuals: Node arity mismatch"),
        ({"residuals": {0: TOKENS}}, "dynamic_shapes of residuals: Node type mismatch"),
        ({"embeds": {"txt": None, "scale": None}}, "dynamic_shapes of embeds: Node keys"),
        ({"sample": 3}, "dynamic_shapes of sample is 3"),
        ({"sample": {3: TOKENS}}, "sample has 3 dimensions, and none is 3. They count from 0"),
        ({"sample": {-4: TOKENS}}, "sample has 3 dimensions, and none is -4"),
        ({"embeds": {"text": None, "scale": {0: TOKENS}}}, "embeds has no dimensions"),
    ],
)
def test_another_form_is_refused(dynamic: Any, text: str) -> None:
    with pytest.raises(DynamicShapeError, match=re.escape(text)):
        free_dimensions(call(), dynamic, None)


@pytest.mark.parametrize("batch", [3, (4, 1), (0, 4), (1, True), (1.0, 4)])
def test_bounds_are_two_whole_numbers(batch: Any) -> None:
    with pytest.raises(DynamicShapeError, match="two whole numbers"):
        free_dimensions(call(), None, batch)
