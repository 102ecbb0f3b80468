"""measuring/stability.py and timing.py: what may count, and what is said of rounds."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from deltapass.bench.measuring.clocks import Taken
from deltapass.bench.measuring.stability import is_stable
from deltapass.bench.measuring.timing import AGAIN, beside, times_of, unstable
from deltapass.bench.methods.method import Method


@pytest.mark.parametrize(
    ("samples", "stable"),
    [
        ([1.0] * 10, True),
        ([1.0] * 9, False),  # too few
        ([1.0, 1.04] * 5, True),
        ([1.0] * 5 + [1.06] * 5, False),  # drifts
        ([1.0] * 8 + [2.0, 3.0], True),  # two strays at most
        ([1.0, 2.0, 1.0, 1.0, 1.0, 1.0, 1.0, 2.0, 1.0, 2.0], False),
    ],
)
def test_times_count_where_they_neither_drift_nor_scatter(
    samples: Sequence[float], stable: bool
) -> None:
    assert is_stable(samples) is stable


def taken(seconds: float) -> Taken:
    return Taken(end_to_end=seconds, denoiser=seconds / 2, step=seconds / 20, worked=seconds)


def method(name: str) -> Method:
    return Method(name=name, label=name, kind="cache", steps=20)


def test_shares_are_taken_round_by_round_so_a_slow_round_slows_both() -> None:
    rounds = [
        {"plain": taken(scale), "ours": taken(scale / 2)}
        for scale in (1.0, 1.0, 3.0, 1.0, 5.0, 1.0, 2.0, 1.0, 9.0, 1.0)
    ]
    found, reference = times_of("ours", "plain", rounds), times_of("plain", "plain", rounds)
    assert found is not None and found.end_to_end is not None and found.denoiser is not None
    assert (found.end_to_end.share, found.end_to_end.share_high) == (0.5, 0.5)
    assert found.denoiser.median == pytest.approx(0.25)
    assert found.end_to_end.stability == "stable"
    # The reference has nothing beside it: its own seconds scatter.
    assert reference is not None and reference.end_to_end is not None
    assert reference.end_to_end.stability == "inconclusive"
    assert unstable([method("plain"), method("ours")], rounds) == ()
    assert times_of("nobody", "plain", rounds) is None


def test_what_scatters_beside_the_reference_is_timed_again() -> None:
    rounds = [{"plain": taken(1.0), "ours": taken(0.5 + 0.1 * (turn % 4))} for turn in range(10)]
    assert [m.name for m in unstable([method("plain"), method("ours")], rounds)] == ["ours"]


def test_shares_are_of_what_the_reference_took_beside_a_method_where_that_is_known() -> None:
    rounds = [
        {
            "plain": taken(1.0 + turn),
            "ours": taken(speed),
            beside("ours"): taken(2 * speed),
            AGAIN: taken(speed),
            beside(AGAIN): taken(speed),
        }
        for turn, speed in enumerate((1.0, 3.0, 2.0, 5.0, 1.0, 4.0, 1.0, 7.0, 2.0, 1.0))
    ]
    found, reference = times_of("ours", "plain", rounds), times_of("plain", "plain", rounds)
    assert found is not None and found.end_to_end is not None
    assert (found.end_to_end.share_low, found.end_to_end.share_high) == (0.5, 0.5)
    assert found.end_to_end.stability == "stable"
    # The reference is judged by itself beside itself, however its seconds scatter.
    assert reference is not None and reference.end_to_end is not None
    assert reference.end_to_end.stability == "stable"
