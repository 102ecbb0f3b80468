"""Telling a sampler's next sample from another request's, by numbers."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from deltapass.selector.continuity import MOST, Continuity


def drawn(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape or (2, 4, 32, 32), generator=torch.Generator().manual_seed(seed))


def picture(seed: int) -> Tensor:
    """Neighbours are alike, as in images."""
    return torch.nn.functional.interpolate(drawn(seed, 2, 4, 4, 4), size=32, mode="bilinear")


def ask(last: Tensor, prediction: Tensor | None, sample: Tensor, level: float | None) -> bool:
    continuity = Continuity()
    continuity.look(last)
    continuity.accept()
    if prediction is not None:
        continuity.note(prediction)
    return continuity.follows(continuity.look(sample).tolist(), level)


def at(level: float, image: int = 1, noise: int = 2) -> Tensor:
    """A sample of flow matching."""
    return (1 - level) * picture(image) + level * drawn(noise)


@pytest.mark.parametrize("scaled", [1.0, 0.3])
@pytest.mark.parametrize("level", [0.9, 0.5, 0.1, 0.02])
def test_steps_along_the_prediction_follow_at_every_level_and_scale(
    level: float, scaled: float
) -> None:
    velocity = drawn(2) - picture(1)
    off = velocity + 0.2 * drawn(3)  # no prediction is perfect
    for size in (0.02, 0.1, 0.5 * level):
        assert ask(at(level), off, scaled * (at(level) - size * off), None)


@pytest.mark.parametrize("level", [0.9, 0.5, 0.2, 0.1])
@pytest.mark.parametrize("known", [True, False])
def test_another_image_or_other_noise_does_not_follow(level: float, known: bool) -> None:
    velocity = drawn(2) - picture(1)
    seen = level if known else None
    assert not ask(at(level), velocity, at(level - 0.02, image=5, noise=6), seen)
    if level > 0.8 or (
        seen is None and level > 0.4
    ):  # else it might be drawn anew, as some samplers do
        assert not ask(at(level), velocity, at(level - 0.02, noise=6), seen)


def test_moderate_fresh_noise_follows_where_its_level_is_known_and_pictures_do_not() -> None:
    base, velocity = at(0.6), drawn(2) - picture(1)
    plain = base - 0.1 * velocity
    noisy, pictured = plain + 0.3 * drawn(7), plain + 0.4 * picture(8)
    assert ask(base, velocity, noisy, 0.5)
    assert not ask(base, velocity, noisy, None)
    assert not ask(base, velocity, pictured, 0.5)


def test_noise_that_late_steps_cannot_have_does_not_follow() -> None:
    base, velocity = at(0.1), drawn(2) - picture(1)
    assert not ask(base, velocity, base - 0.05 * velocity + 0.5 * drawn(7), 0.05)


def test_a_sample_that_stands_still_or_is_nothing_does_not_follow() -> None:
    base = at(0.5)
    assert not ask(base, None, base, 0.5)
    assert not ask(base, None, torch.zeros_like(base), 0.5)
    assert not ask(torch.zeros_like(base), None, base, 0.5)
    assert not ask(base, None, base * float("nan"), 0.5)
    assert ask(base, torch.full_like(base, float("nan")), base * 0.9, 0.5)


def test_nothing_follows_before_there_is_a_last_sample_or_after_another_shape() -> None:
    continuity = Continuity()
    assert not continuity.follows(continuity.look(at(0.5)).tolist(), 0.5)
    assert not continuity.same
    continuity.accept()
    assert not continuity.follows(continuity.look(drawn(1, 2, 4, 16, 16)).tolist(), 0.5)


def guided(one: Tensor, other: Tensor, scale: float) -> Tensor:
    return other + scale * (one - other)


@pytest.mark.parametrize("scale", [2.0, 7.5, 30.0])
def test_samples_follow_guided_predictions_of_two_calls(scale: float) -> None:
    velocity = drawn(2) - picture(1)
    other = velocity + 0.5 * drawn(9)
    continuity = Continuity()
    continuity.look(at(0.5)[:1])
    continuity.accept()
    for made in (velocity, other, drawn(10)):  # a third one does not count
        continuity.note(made[:1])
    sample = at(0.5) - 0.1 * guided(velocity, other, scale)
    assert continuity.follows(continuity.look(sample[:1]).tolist(), None)


@pytest.mark.parametrize("scale", [2.0, 7.5, 30.0])
def test_samples_follow_guided_predictions_of_the_halves_of_a_batch(scale: float) -> None:
    velocity = drawn(2) - picture(1)
    other = velocity + 0.5 * drawn(9)
    sample = at(0.5) - 0.1 * guided(velocity, other, scale)
    base, made, then = (
        torch.cat([a, b]) for a, b in ((at(0.5), at(0.5)), (velocity, other), (sample, sample))
    )
    assert ask(base, made, then, None)


@pytest.mark.parametrize("shape", [(3,), (2, 4, 16), (2, 4, 64, 64), (1, 3, 40, 7)])
def test_changes_anywhere_in_small_samples_and_in_place_are_seen(shape: tuple[int, ...]) -> None:
    sample = drawn(1, *shape)
    continuity = Continuity()
    continuity.look(sample)
    continuity.accept()
    continuity.look(sample)
    assert continuity.same
    sample.view(-1)[0 if sample.numel() > MOST else sample.numel() // 4] += 1
    continuity.look(sample)
    assert not continuity.same


@pytest.mark.parametrize(
    "change",
    [
        lambda x: x.to(memory_format=torch.channels_last),
        lambda x: x.transpose(-1, -2).contiguous().transpose(-1, -2),
        lambda x: x.bfloat16().float(),
    ],
)
def test_layout_does_not_matter(change: object) -> None:
    assert callable(change)
    velocity = drawn(2) - picture(1)
    assert ask(at(0.5), change(velocity), change(at(0.5) - 0.3 * velocity), None)


@torch.no_grad()
def test_autocast_and_inference_mode_change_nothing() -> None:
    velocity = drawn(2) - picture(1)
    continuity = Continuity()
    with torch.inference_mode():
        continuity.look(at(0.5))
        continuity.accept()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        continuity.note(velocity)
        products = continuity.look(at(0.5) - 0.3 * velocity)
    assert products.dtype is torch.float32
    assert continuity.follows(products.tolist(), None)
