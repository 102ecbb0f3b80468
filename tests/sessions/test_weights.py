"""A weight is the same only without a change: the same object, or moved with its numbers."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from driving import compiled
from models import make
from wrapped import Nested8Bit, Scaled8Bit, rounded, scaled

import deltapass
from deltapass.graph.program import TensorSpec
from deltapass.sessions.weights import WeightWatch, same_weights, weigh


def weights() -> list[torch.nn.Parameter]:
    return [torch.nn.Parameter(torch.full((4,), 2.0 * at)) for at in range(3)]


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


def moved(some: list[torch.nn.Parameter]) -> None:
    """As torch moves a module: the data of parameters, and buffers as other objects."""
    for weight in some[:2]:
        weight.data = weight.data.clone()
    some[2] = torch.nn.Parameter(some[2].clone(), requires_grad=False)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.bool, torch.complex64])
@pytest.mark.parametrize("shape", [(), (0,), (3,), (40, 70), (2, 3, 4, 5)])
def test_weights_that_only_move_are_the_same(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    some = [torch.nn.Parameter(torch.rand(shape).to(dtype), requires_grad=False) for _ in range(3)]
    if len(shape) == 4:
        some[0].data = some[0].data.to(memory_format=torch.channels_last)
    before = weigh(some)
    kept = [weight.data for weight in some]  # so that none comes to lie where another lay
    moved(some)
    assert same_weights(before, weigh(some))
    some[1].zero_()
    assert not same_weights(before, weigh(some))
    del kept


def test_a_low_rank_update_that_moves_is_seen() -> None:
    some = [torch.nn.Parameter(torch.randn(300, 200).bfloat16()) for _ in range(3)]
    before = weigh(some)
    update = 1e-2 * torch.randn(300, 1) @ torch.randn(1, 200)
    some[2].data = some[2].data + update.bfloat16()
    assert not same_weights(before, weigh(some))


def test_numbers_that_are_not_to_be_read_count_as_changed() -> None:
    """Weights of a subclass may answer for another tensor inside them."""

    class Wrapped(torch.Tensor):
        pass

    some: list[torch.Tensor] = [torch.zeros(4).as_subclass(Wrapped)]
    before = weigh(some)
    kept = some[0].data
    some[0].data = torch.zeros(4).as_subclass(Wrapped)
    assert not same_weights(before, weigh(some))
    del kept


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


# ---- weights that hold other tensors ----------------------------------------------------------


def quantised(kind: type[Scaled8Bit] = Scaled8Bit) -> torch.nn.Parameter:
    numbers, scale = rounded(torch.arange(1.0, 13.0).view(3, 4))
    scale = Scaled8Bit(*rounded(scale)) if kind is Nested8Bit else scale
    return torch.nn.Parameter(kind(numbers, scale), requires_grad=False)


def watch_of(arguments: tuple[torch.Tensor, ...]) -> WeightWatch:
    """Watches all arguments, by the specs that a compiled model has of them."""
    wrapped = {at: TensorSpec.of(weight).wrapped for at, weight in enumerate(arguments)}
    return WeightWatch(range(len(arguments)), {at: w.paths for at, w in wrapped.items() if w})


def scale_changed(some: list[torch.nn.Parameter]) -> None:
    some[1].s.mul_(2)  # type: ignore[attr-defined]


def copied_into(some: list[torch.nn.Parameter]) -> None:
    with torch.no_grad():
        some[1].copy_(quantised())


def part_replaced(some: list[torch.nn.Parameter]) -> None:
    some[1].q = -some[1].q  # type: ignore[attr-defined]


def part_moved(some: list[torch.nn.Parameter]) -> None:
    some[1].q.data = -some[1].q  # type: ignore[attr-defined]


def wrapper_replaced(some: list[torch.nn.Parameter]) -> None:
    some[1] = quantised()
    some[1].s.add_(1)  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    "change", [scale_changed, copied_into, part_replaced, part_moved, wrapper_replaced]
)
def test_changes_of_what_a_weight_holds_are_seen(
    change: Callable[[list[torch.nn.Parameter]], None],
) -> None:
    some = [*weights(), *weights()]
    some[1] = quantised()
    watch = watch_of(tuple(some))
    first = watch.look(tuple(some))
    assert watch.look(tuple(some), first) is first
    change(some)
    changed = watch.look(tuple(some), first)
    assert not same_weights(first, changed)
    assert watch.look(tuple(some), changed) is changed


def test_what_a_weight_holds_may_move() -> None:
    """As offloading moves it: another weight, of other tensors that hold the same numbers."""
    some = [quantised()]
    watch = watch_of(tuple(some))
    first = watch.look(tuple(some))
    kept = some[0]
    some[0] = torch.nn.Parameter(kept.of(torch.clone), requires_grad=False)  # type: ignore[attr-defined]
    now = watch.look(tuple(some), first)
    assert now is not first
    assert same_weights(first, now)


def test_changes_deep_within_are_seen() -> None:
    some = (quantised(Nested8Bit),)
    watch = watch_of(some)
    first = watch.look(some)
    assert watch.look(some, first) is first
    some[0].s.q.add_(1)  # type: ignore[attr-defined]
    assert watch.look(some, first) is not first


def test_a_weight_that_holds_others_is_not_held_weakly() -> None:
    """Torch swaps such weights where it would set the data of others, if nobody refers to them."""
    some = (quantised(),)
    watch = watch_of(some)
    noted = watch.look(some)
    torch.utils.swap_tensors(some[0], quantised())
    assert watch.look(some, noted) is not noted


def test_plain_parts_are_asked_by_the_compiled_check() -> None:
    assert watch_of((quantised(),)).look((quantised(),)).plain


def test_changed_quantised_weight_refreshes_and_an_unchanged_one_does_not() -> None:
    toy = scaled(make("adaln"))
    model = compiled(toy, cached_blocks=4, schedule="delta-cache-deep", interval=4)
    args, kwargs = toy.inputs(500.0, 1)  # type: ignore[operator]
    with torch.no_grad(), deltapass.session(steps=4) as session:
        for step in range(4):
            session.step(step)
            if step == 2:
                toy.blocks[5].mlp[0].weight.q.neg_()  # type: ignore[index, union-attr]
            out = model(*args, **kwargs)
            if step == 2:
                assert torch.equal(out, toy(*args, **kwargs))
        causes = [entry.cause for entry in session.report().entries]
    assert causes == [deltapass.Cause.NEW_TRAJECTORY, None, deltapass.Cause.WEIGHTS, None]
