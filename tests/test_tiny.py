"""The tiny models of diffusers run, do something in every block, and obey the oracle."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch

pytest.importorskip("diffusers")

from models.tiny import TINY_NAMES, Tiny, make_tiny
from reference import Call, DeltaCacheReference


@dataclass(frozen=True)
class Span:
    start: int
    stop: int


def trajectory(tiny: Tiny, steps: int = 6) -> list[Call]:
    return [tiny.call(1.0 - step / steps, seed=step) for step in range(steps)]


def plain(tiny: Tiny, calls: list[Call]) -> list[torch.Tensor]:
    with torch.no_grad():
        return [tiny.model(*args, **kwargs)[0] for args, kwargs in calls]


@pytest.mark.parametrize("name", TINY_NAMES)
def test_oracle_without_cached_steps_equals_the_plain_model(name: str) -> None:
    tiny = make_tiny(name)
    calls = trajectory(tiny)
    outputs = DeltaCacheReference(tiny.model, tiny.blocks, tiny.streams).run([None] * 6, calls)
    for expected, (actual,) in zip(plain(tiny, calls), outputs, strict=True):
        assert torch.isfinite(actual).all()
        assert 1e-2 < actual.std() < 1e2
        assert torch.equal(actual, expected)


@pytest.mark.parametrize("order", [0, 1])
@pytest.mark.parametrize("name", TINY_NAMES)
def test_cached_steps_change_the_output_and_only_they(name: str, order: int) -> None:
    tiny = make_tiny(name)
    calls, last = trajectory(tiny), len(tiny.blocks)
    deep, shallow = Span(1, last), Span(0, last - 1)
    table = [None, deep, None, deep, shallow, None]
    reference = DeltaCacheReference(tiny.model, tiny.blocks, tiny.streams, order)
    outputs = reference.run(table, calls)
    same = [torch.equal(one, out[0]) for one, out in zip(plain(tiny, calls), outputs, strict=True)]
    assert same == [True, False, True, False, False, True]
    assert all(torch.isfinite(out[0]).all() for out in outputs)
    assert reference.blocks_run == [last, 1, last, 1, 1, last]


@pytest.mark.parametrize("name", TINY_NAMES)
def test_every_block_matters(name: str) -> None:
    tiny = make_tiny(name)
    call = tiny.call(0.5)
    (expected,) = plain(tiny, [call])
    for index in range(len(tiny.blocks)):
        # A first call at another noise level makes the delta a wrong one for the second call.
        reference = DeltaCacheReference(tiny.model, tiny.blocks, tiny.streams)
        table = [None, Span(index, index + 1)]
        _, (actual,) = reference.run(table, [tiny.call(0.9, seed=1), call])
        assert not torch.allclose(actual, expected, atol=1e-3)
