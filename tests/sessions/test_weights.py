"""A weight is the same only as the same object, in the same memory, without a change."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from driving import compiled
from models import make

import deltapass
from deltapass.sessions.weights import same_weights, weigh


def weights() -> list[torch.nn.Parameter]:
    return [torch.nn.Parameter(torch.zeros(4)) for _ in range(3)]


def in_place(some: list[torch.nn.Parameter]) -> None:
    with torch.no_grad():
        some[1].add_(1)


def other_memory(some: list[torch.nn.Parameter]) -> None:
    some[1].data = torch.ones(4)


def other_object(some: list[torch.nn.Parameter]) -> None:
    some[1] = torch.nn.Parameter(torch.ones(4))


def same_address(some: list[torch.nn.Parameter]) -> None:
    """What is made right after something was freed may lie where that lay."""
    some[1] = None  # type: ignore[call-overload]
    some[1] = torch.nn.Parameter(torch.ones(4))


def exchanged(some: list[torch.nn.Parameter]) -> None:
    some[0], some[1] = some[1], some[0]


def test_unchanged_weights_are_the_same() -> None:
    some = weights()
    assert same_weights(weigh(some), weigh(some))


@pytest.mark.parametrize("change", [in_place, other_memory, other_object, same_address, exchanged])
def test_every_change_is_seen(change: Callable[[list[torch.nn.Parameter]], None]) -> None:
    some = weights()
    before = weigh(some)
    change(some)
    assert not same_weights(before, weigh(some))


def test_changes_that_cancel_in_a_sum_are_seen() -> None:
    some = weights()
    some[0].data = torch.ones(4)
    with torch.no_grad():
        some[2].add_(1)
    before = weigh(some)
    some[2] = torch.nn.Parameter(torch.zeros(4))
    with torch.no_grad():
        some[0].add_(1)
    assert not same_weights(before, weigh(some))


def test_one_inference_tensor_does_not_hide_the_others() -> None:
    some = weights()
    with torch.inference_mode():
        some[0] = torch.nn.Parameter(torch.zeros(4), requires_grad=False)
    before = weigh(some)
    assert same_weights(before, weigh(some))
    in_place(some)
    assert not same_weights(before, weigh(some))


def test_weights_are_not_kept_alive() -> None:
    some = weights()
    noted = weigh(some)
    some.clear()
    assert all(known() is None for known in noted.objects)


def test_replaced_weight_refreshes() -> None:
    toy = make("adaln")
    model = compiled(toy, cached_blocks=4)
    args, kwargs = toy.inputs(500.0, 1)
    with torch.no_grad(), deltapass.session(steps=4) as session:
        for step in range(2):
            session.step(step)
            if step:
                block = toy.blocks[5].mlp[0]
                shape = block.weight.shape
                block.weight = None
                block.weight = torch.nn.Parameter(torch.randn(shape))
            out = model(*args, **kwargs)
        assert torch.equal(out, toy(*args, **kwargs))
        assert session.report().entries[1].cause is deltapass.Cause.WEIGHTS
