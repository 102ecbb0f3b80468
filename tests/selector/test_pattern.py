"""How many steps, and whether they are a sampler's: told from the first timesteps alone."""

from __future__ import annotations

import pytest

from deltapass.schedule.rules import FEW_STEPS
from deltapass.selector.pattern import Length, are_regular, length_of

SHIFTS = [1.0, 1.7, 3.0, 5.0, 7.0, 12.0]


def shifted(steps: int, shift: float) -> list[float]:
    """Noise levels of flow matching."""
    levels = [1 - step / steps for step in range(steps)]
    return [shift * level / (1 + (shift - 1) * level) for level in levels]


def decided(levels: list[float], grain: float = 0.0) -> tuple[int, Length]:
    """The step at which the length is known, and what it is."""
    for step in range(len(levels)):
        length = length_of(levels[: step + 1], grain)
        if length is not Length.UNKNOWN:
            return step, length
    raise AssertionError("never known")


@pytest.mark.parametrize("start", [0, 2])
@pytest.mark.parametrize("shift", SHIFTS)
@pytest.mark.parametrize("steps", [4, 5, 6, 7, 8, 9, 10, 12, 20, 28, 50, 250])
def test_the_third_step_tells_the_length_whatever_the_shift(
    steps: int, shift: float, start: int
) -> None:
    few = steps <= FEW_STEPS
    levels = shifted(steps, shift)[start:]
    if len(levels) > 2:
        assert decided(levels) == (2, Length.FEW if few else Length.MANY)


@pytest.mark.parametrize("steps", range(9, 60))
def test_whole_timesteps_tell_it_too(steps: int) -> None:
    """Spaced as diffusers does, trailing and leading, and rounded."""
    trailing = [round(1000 - step * 1000 / steps) / 1000 - 1e-3 for step in range(steps)]
    leading = [(steps - 1 - step) * (1000 // steps) / 1000 for step in range(steps)]
    for levels in (trailing, leading):
        step, length = decided(levels, 0.5e-3)
        assert length is Length.MANY
        assert step <= 4 or steps > 20  # where rounding hides the bend, a few steps more


@pytest.mark.parametrize("shift", SHIFTS)
@pytest.mark.parametrize("steps", [4, 6, 8])
def test_rounding_never_makes_many_steps_of_few(steps: int, shift: float) -> None:
    exact = shifted(steps, shift)
    for grain, levels in (
        (0.5e-3, [round(1000 * level) / 1000 for level in exact]),
        (2.0**-8, [round(256 * level) / 256 for level in exact]),
    ):
        assert Length.MANY not in {length_of(levels[: n + 1], grain) for n in range(steps)}


def test_spacings_that_quicken_are_taken_for_shorter_and_the_ninth_step_proves_the_contrary() -> (
    None
):
    karras = [(14.6 ** (1 / 7) - at * (14.6 ** (1 / 7) - 0.03 ** (1 / 7)) / 11) for at in range(12)]
    levels = [value**7 / 14.6 for value in karras]
    assert decided(levels)[1] is Length.FEW
    assert length_of(levels[:9], 0.0) is Length.MANY


def test_spacings_that_slow_down_are_not_taken_for_longer() -> None:
    assert decided([1.0, 0.6, 0.4, 0.25, 0.1])[1] is Length.FEW


@pytest.mark.parametrize(
    ("gaps", "grain", "regular"),
    [
        ([50.0, 50.0, 50.0], 0.0, True),
        ([50.0, 40.0, 32.0], 0.0, True),
        ([30.0, 40.0, 53.0], 0.0, True),
        ([149.0, 114.0, 91.0], 0.0, True),
        ([50.0, 50.0, 66.0], 0.0, False),
        ([50.0, 50.0, 34.0], 0.0, False),
        ([7.0, 200.0, 30.0], 0.0, False),
        ([1000.0, 50.0, 50.0, 50.0], 0.0, True),
        ([16.0, 20.0, 16.0], 4.0, True),
        ([50.0, 50.0], 0.0, False),
    ],
)
def test_gaps_of_one_sampler_go_on_as_they_began(
    gaps: list[float], grain: float, regular: bool
) -> None:
    assert are_regular(gaps, grain) is regular
