"""Whether the conditioning changed, and when that is worth reading a number for."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, ClassVar

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from deltapass.sessions import changes as conditioning
from deltapass.sessions.changes import (
    Seen,
    Values,
    changed_inputs,
    fingerprint,
    look,
    values_of,
)

ways = pytest.mark.parametrize("certain", [False, True])


class Remote(torch.Tensor):
    """A tensor that says it lies on a GPU; where its numbers are read, one would wait for it."""

    device = property(lambda self: torch.device("cuda"))  # type: ignore[assignment]
    waits: ClassVar[list[int]] = []

    def tolist(self) -> Any:
        self.waits.append(self.numel())
        return self.as_subclass(torch.Tensor).tolist()

    def item(self) -> Any:
        raise AssertionError("read one by one")

    cpu = numpy = __bool__ = __float__ = __int__ = item  # type: ignore[assignment]


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Numbers read from a device, one entry each time that one would wait for it."""

    def on_device(tensor: torch.Tensor) -> torch.Tensor:
        kind = type(tensor)
        return fingerprint(tensor.as_subclass(torch.Tensor)).as_subclass(kind)

    monkeypatch.setattr(conditioning, "fingerprint", on_device)
    Remote.waits.clear()
    return Remote.waits


def remote(value: float = 1.0) -> torch.Tensor:
    return torch.full((2, 3), value).as_subclass(Remote)


def seen(tensor: torch.Tensor, *, certain: bool = False) -> Seen:
    return look(tensor, None, certain=certain)[0]


# ---- one tensor, on a CPU ----------------------------------------------------------------------


@ways
def test_first_look_finds_nothing_changed(certain: bool) -> None:
    assert not look(torch.ones(2, 3), None, certain=certain)[1]


@ways
def test_same_object_is_not_read_again(certain: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    text = torch.ones(2, 3)
    before = seen(text, certain=certain)
    monkeypatch.delattr(conditioning, "fingerprint")
    monkeypatch.delattr(conditioning, "values_of")
    again, changed = look(text, before, certain=certain)
    assert again is before
    assert not changed


@ways
def test_equal_values_in_a_new_object_are_no_change(certain: bool) -> None:
    text = torch.ones(2, 3)
    assert not look(text.clone(), seen(text, certain=certain), certain=certain)[1]


@ways
def test_equal_values_after_the_first_object_is_gone_are_no_change(certain: bool) -> None:
    before = seen(torch.ones(2, 3), certain=certain)
    assert before.tensor() is None
    assert not look(torch.ones(2, 3), before, certain=certain)[1]


@ways
@pytest.mark.parametrize("at", [(0, 0), (0, 2), (1, 0), (1, 2)])
def test_other_values_are_a_change(certain: bool, at: tuple[int, int]) -> None:
    text, other = torch.ones(2, 3), torch.ones(2, 3)
    other[at] = 2.0
    assert look(other, seen(text, certain=certain), certain=certain)[1]


@ways
def test_change_in_place_is_a_change(certain: bool) -> None:
    text = torch.ones(2, 3)
    before = seen(text, certain=certain)
    text.add_(1)
    now, changed = look(text, before, certain=certain)
    assert changed
    assert not look(text, now, certain=certain)[1]


@ways
def test_write_that_changes_no_value_is_no_change(certain: bool) -> None:
    text = torch.ones(2, 3)
    before = seen(text, certain=certain)
    text.mul_(1)
    assert not look(text, before, certain=certain)[1]


# ---- tensors of inference mode keep no version ---------------------------------------------------


@ways
def test_unchanged_tensor_of_inference_mode_is_no_change(certain: bool) -> None:
    with torch.inference_mode():
        text = torch.ones(2, 3)
    before = seen(text, certain=certain)
    assert before.version == -1
    assert not look(text, before, certain=certain)[1]
    assert not look(text.clone(), before, certain=certain)[1]


@ways
@torch.inference_mode()
def test_tensor_of_inference_mode_changed_in_place_on_a_cpu_is_a_change(certain: bool) -> None:
    text = torch.ones(2, 3)
    before = seen(text, certain=certain)
    text.add_(1)
    assert look(text, before, certain=certain)[1]


@torch.inference_mode()
def test_tensor_of_inference_mode_on_a_device_is_read_only_where_it_must_be_certain(
    waits: list[int],
) -> None:
    text = remote()
    before = seen(text)
    text.add_(1)
    assert not look(text, before, certain=False)[1], "it cannot be known without waiting"
    assert not waits
    assert look(text, before, certain=True)[1]


@torch.inference_mode()
def test_new_tensors_of_inference_mode_on_a_device_are_compared(waits: list[int]) -> None:
    before = seen(remote())
    now, changed = look(remote(), before, certain=False)
    assert not changed
    assert look(remote(2.0), now, certain=False)[1]
    assert waits


# ---- on a device, where every read waits ---------------------------------------------------------


@ways
def test_no_value_is_read_on_a_device_while_the_objects_stay(
    waits: list[int], certain: bool
) -> None:
    text, now = remote(), None
    for _ in range(4):
        now, changed = look(text, now, certain=certain)
        assert not changed
    assert not waits


def test_new_object_on_a_device_is_compared_with_the_last_one(waits: list[int]) -> None:
    text = remote()
    now, changed = look(remote(), seen(text), certain=False)
    assert not changed
    assert 1 <= len(waits) <= 2
    assert look(remote(2.0), now, certain=False)[1]


def test_new_object_on_a_device_is_compared_also_where_its_predecessor_is_gone(
    waits: list[int],
) -> None:
    before = seen(remote())
    assert before.tensor() is None
    assert not look(remote(), before, certain=False)[1]
    assert look(remote(2.0), before, certain=False)[1]


def test_change_in_place_on_a_device_is_compared_with_what_was_there(waits: list[int]) -> None:
    text = remote()
    before = seen(text)
    text.mul_(1)
    now, changed = look(text, before, certain=False)
    assert not changed
    text.add_(1)
    assert look(text, now, certain=False)[1]


def test_what_is_kept_of_a_tensor_on_a_device_is_small_and_its_own(waits: list[int]) -> None:
    text = torch.ones(100, 100).as_subclass(Remote)
    numbers = seen(text).numbers
    assert torch.is_tensor(numbers)
    assert numbers.nbytes <= 512
    assert numbers.untyped_storage().nbytes() <= 512


# ---- all inputs of a call ------------------------------------------------------------------------


def test_changed_inputs_are_named_and_all_are_looked_at() -> None:
    text, pooled, sample = torch.ones(2, 3), torch.ones(2), torch.ones(2, 4)
    kept: dict[int, Seen] = {}
    named = {1: "text", 2: "pooled"}

    def names(*arguments: Any) -> tuple[str, ...]:
        return changed_inputs(kept, arguments, named, certain=False)

    assert names(sample, text, pooled) == ()
    assert names(sample + 1, text, pooled) == ()
    assert names(sample, text + 1, pooled) == ("text",)
    assert names(sample, text, pooled + 1) == ("text", "pooled")
    assert names(sample, text, pooled + 1) == ()
    assert set(kept) == {1, 2}


# ---- fingerprints --------------------------------------------------------------------------------


def on_a_device(tensor: torch.Tensor) -> Values:
    return tuple(fingerprint(tensor).tolist())


readers = pytest.mark.parametrize("numbers", [on_a_device, values_of])
Numbers = Callable[[torch.Tensor], Values]


@readers
@given(st.lists(st.integers(0, 12), max_size=4), st.data())
def test_a_change_of_any_one_number_is_seen(
    numbers: Numbers, shape: list[int], data: st.DataObject
) -> None:
    count = torch.Size(shape).numel()
    tensor = torch.arange(1.0, count + 1).reshape(shape)
    before = numbers(tensor)
    assert len(before) <= 8
    assert numbers(tensor.clone()) == before
    if count:
        at, value = data.draw(st.integers(0, count - 1)), data.draw(st.floats(width=32))
        other = tensor.flatten().index_fill(0, torch.tensor(at), value).reshape(shape)
        same = torch.equal(tensor.view(torch.int32), other.view(torch.int32)) if shape else False
        assert (numbers(other) == before) == (same or torch.equal(tensor, other))


@readers
@given(st.lists(st.integers(-3, 3), min_size=1, max_size=200), st.randoms(use_true_random=False))
def test_order_matters(numbers: Numbers, values: list[int], random: Any) -> None:
    other = random.sample(values, len(values))
    same = numbers(torch.tensor(values)) == numbers(torch.tensor(other))
    assert same == (values == other)


@readers
def test_change_too_small_for_a_sum_is_seen(numbers: Numbers) -> None:
    text = torch.full((512, 1024), 1000.0)
    other = text.clone()
    other[300, 300] += 1e-4
    assert numbers(text) != numbers(other)


@readers
@pytest.mark.parametrize("value", [torch.finfo(torch.float32).min, -torch.inf, torch.nan])
def test_numbers_that_swallow_others_hide_no_change(numbers: Numbers, value: float) -> None:
    mask = torch.full((2, 300), value)
    other = mask.clone()
    assert numbers(mask) == numbers(other)
    other[1, 7] = 0.0
    assert numbers(mask) != numbers(other)


@readers
def test_views_of_any_layout_are_read_as_their_values(numbers: Numbers) -> None:
    text = torch.arange(24.0).reshape(2, 3, 4)
    assert numbers(text.transpose(1, 2)) == numbers(text.transpose(1, 2).contiguous())
    assert numbers(torch.zeros(1).expand(3, 5)) == numbers(torch.zeros(3, 5))


@readers
@pytest.mark.parametrize(
    "dtype",
    [
        *(torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.float8_e4m3fn),
        *(torch.bool, torch.uint8, torch.int32, torch.int64, torch.complex64, torch.complex128),
    ],
)
def test_every_type_of_input_is_read(numbers: Numbers, dtype: torch.dtype) -> None:
    one, other = torch.tensor([0, 1, 1]).to(dtype), torch.tensor([0, 1, 0]).to(dtype)
    assert numbers(one) == numbers(one.clone())
    assert numbers(one) != numbers(other)


def test_a_prompt_on_a_cpu_is_read_at_the_pace_of_memory() -> None:
    """Inference tensors are read at every call: the checksums for devices take some 50 times."""
    prompt = torch.randn(1024, 2048).to(torch.float16)

    def seconds(read: Numbers) -> float:
        started = time.thread_time()
        read(prompt)
        return time.thread_time() - started

    ours, others = (min(seconds(read) for _ in range(5)) for read in (values_of, on_a_device))
    assert ours < others / 5


@ways
def test_complex_inputs_are_compared(certain: bool) -> None:
    rotary = torch.polar(torch.ones(3), torch.arange(3.0))
    before = seen(rotary, certain=certain)
    assert not look(rotary.clone(), before, certain=certain)[1]
    assert not look(rotary.clone().conj().conj(), before, certain=certain)[1]
    assert look(rotary.conj(), before, certain=certain)[1]
