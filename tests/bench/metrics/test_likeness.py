"""Similarity of deltas: closed forms, and blocks of a model that nobody named."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from models import make

from deltapass.bench.metrics.likeness import cosine, cosine_figure, likeness
from deltapass.errors import BenchError


def test_cosine_is_over_all_streams_of_a_sample_and_the_mean_of_samples() -> None:
    one = [torch.tensor([[1.0, 0.0], [1.0, 1.0]]), torch.tensor([[0.0], [0.0]])]
    other = [torch.tensor([[1.0, 0.0], [-2.0, -2.0]]), torch.tensor([[1.0], [0.0]])]
    assert cosine(one, other) == pytest.approx((1 / math.sqrt(2) - 1) / 2)


STEPS = 4


def trajectory(toy: Any, calls: int = STEPS, branches: int = 1) -> Callable[[Any], None]:
    def sample(model: Any) -> None:
        for call in range(calls):
            args, kwargs = toy.inputs(900.0 - 100 * (call // branches), seed=call % branches)
            model(*args, **kwargs)

    return sample


def by_hooks(toy: Any, sample: Callable[[Any], None]) -> list[list[torch.Tensor]]:
    """What each block of a toy of one stream adds, call after call."""
    added: list[list[torch.Tensor]] = []

    def hook(block: Any, args: tuple[torch.Tensor, ...], out: torch.Tensor) -> None:
        if block is toy.blocks_in_order()[0]:
            added.append([])
        added[-1].append(out - args[0])

    hooks = [block.register_forward_hook(hook) for block in toy.blocks_in_order()]
    with torch.no_grad():
        sample(toy)
    for each in hooks:
        each.remove()
    return added


@pytest.mark.parametrize("name", ["adaln", "attributes"])  # held in a list, and one by one
@pytest.mark.parametrize("branches", [1, 2])
def test_every_block_is_found_and_compared_with_itself_a_step_earlier(
    name: str, branches: int
) -> None:
    toy = make(name)
    sample = trajectory(toy, STEPS * branches, branches)
    found = likeness(toy, sample, STEPS, branches=branches)
    added = by_hooks(toy, sample)
    assert (len(found), len(found[0])) == (STEPS - 1, len(toy.blocks_in_order()))
    for step, row in enumerate(found):
        first = step * branches
        for block, value in enumerate(row):
            pairs = [
                cosine([added[call][block]], [added[call + branches][block]])
                for call in range(first, first + branches)
            ]
            assert value == pytest.approx(sum(pairs) / branches, abs=1e-6)


def test_two_streams_are_one_delta() -> None:
    toy = make("two_stream")
    (row,) = likeness(toy, trajectory(toy, 2), 2)
    assert len(row) == len(toy.blocks_in_order())
    assert all(value is not None and value < 1 for value in row)


def test_calls_that_are_not_the_steps_are_an_error() -> None:
    toy = make("adaln")
    with pytest.raises(BenchError, match="trajectory of 3 steps called the model 4 times"):
        likeness(toy, trajectory(toy), 3)


def test_the_figure_has_a_row_a_block_and_the_mean_of_all() -> None:
    figure = cosine_figure([(0.9, None, 0.7), (1.0, None, 0.6)])
    assert figure.grid == ((0.9, 1.0), (None, None), (0.7, 0.6))
    (curve,) = figure.series
    assert curve.x == (1.0, 2.0)
    assert curve.y == pytest.approx((0.8, 0.8))
    assert (curve.low, curve.high) == ((0.7, 0.6), (0.9, 1.0))
