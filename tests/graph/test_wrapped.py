"""graph/wrapped.py: what a tensor that holds others is made of, and when two are alike."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from wrapped import Nested8Bit, Scaled8Bit, rounded

from deltapass.graph.program import TensorSpec
from deltapass.graph.wrapped import holds_tensors, plain_tensors

WEIGHT = torch.arange(1.0, 13.0).view(3, 4)


def weight(kind: Any = Scaled8Bit, **changes: Any) -> Any:
    numbers, scale = rounded(WEIGHT)
    return kind(numbers, Scaled8Bit(*rounded(scale)) if kind is Nested8Bit else scale, **changes)


def test_weights_made_alike_have_one_spec() -> None:
    one, other = TensorSpec.of(weight()), TensorSpec.of(weight())
    assert one == other
    assert hash(one) == hash(other)


def test_whatever_code_depends_on_makes_another_spec() -> None:
    given = weight()
    others = [
        given.dense(),
        weight(offset=1.0),
        weight(Nested8Bit),
        Scaled8Bit(given.q.to(torch.int16), given.s),
        Scaled8Bit(given.q, given.s.expand(3, 4)),
        type("Other8Bit", (Scaled8Bit,), {})(given.q, given.s),
    ]
    specs = {TensorSpec.of(each) for each in (given, *others)}
    assert len(specs) == 7


def test_contexts_that_cannot_be_compared_are_not_the_same() -> None:
    several = torch.zeros(2)  # its == gives a tensor, which is neither true nor false
    one, other = weight(offset=several), weight(offset=several + 0)
    assert TensorSpec.of(one) != TensorSpec.of(other)
    assert TensorSpec.of(one) == TensorSpec.of(one)


@pytest.mark.parametrize("kind", [Scaled8Bit, Nested8Bit])
def test_an_empty_one_is_made_alike(kind: type[Scaled8Bit]) -> None:
    spec = TensorSpec.of(weight(kind, offset=2.0))
    made = spec.empty()
    assert type(made) is kind
    assert TensorSpec.of(made) == spec
    assert {part.device.type for part in plain_tensors(spec.empty("meta"))} == {"meta"}


def test_plain_tensors_are_found_at_their_paths() -> None:
    nested = weight(Nested8Bit)
    wrapped = TensorSpec.of(nested).wrapped
    assert wrapped is not None
    assert wrapped.paths == ("q", "s.q", "s.s")
    within = (nested.q, nested.s.q, nested.s.s)
    assert all(one is other for one, other in zip(plain_tensors(nested), within, strict=True))


@pytest.mark.parametrize("value", [WEIGHT, torch.nn.Parameter(WEIGHT), None, 3])
def test_plain_values_hold_nothing(value: Any) -> None:
    assert not holds_tensors(value)
