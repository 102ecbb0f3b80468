"""Intervals that hold what they should, and verdicts that need evidence."""

from __future__ import annotations

import numpy as np
import pytest

from deltapass.bench.metrics.intervals import (
    FEW,
    MANY,
    as_good_as,
    detectable,
    equal_time_rival,
    holds,
    interval,
    paired,
    too_few,
)


def noisy(count: int, mean: float = 0.0, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(mean, 1.0, count)


def judged(ours: np.ndarray, theirs: np.ndarray, higher: bool, margin: float) -> tuple[str, bool]:
    found = paired(ours, theirs, higher=higher, margin=margin)
    return found.verdict, holds(found, higher=higher, margin=margin)


def test_interval_is_that_of_the_normal_distribution() -> None:
    values = noisy(400, 5.0)
    found = interval(values)
    half = 1.96 * values.std() / 20
    assert found.mean == pytest.approx(values.mean())
    assert (found.low, found.high) == pytest.approx(
        (values.mean() - half, values.mean() + half), abs=0.01
    )


def test_interval_holds_the_true_mean_nineteen_times_in_twenty() -> None:
    found = [interval(noisy(200, seed=seed)) for seed in range(200)]
    share = sum(each.low <= 0 <= each.high for each in found) / 200
    assert 0.91 <= share <= 0.99


def test_values_that_are_all_the_same_leave_no_doubt() -> None:
    assert interval(np.ones(10)).low == interval(np.ones(10)).high == 1.0


def test_pairs_find_what_two_means_would_not() -> None:
    common = noisy(200) * 10
    ours, theirs = common + 0.3 + noisy(200, seed=1) / 10, common
    assert interval(ours).low < interval(theirs).high  # their own intervals overlap
    assert paired(ours, theirs, higher=True, margin=0).verdict == "better"
    assert paired(theirs, ours, higher=True, margin=0).verdict == "worse"


def test_less_is_better_where_it_is() -> None:
    ours, theirs = noisy(200), noisy(200) + 1
    assert paired(ours, theirs, higher=False, margin=0).verdict == "better"
    assert paired(theirs, ours, higher=False, margin=0).verdict == "worse"


@pytest.mark.parametrize("higher", [True, False])
def test_the_same_is_what_is_surely_within_the_margin(higher: bool) -> None:
    ours, theirs = noisy(200), noisy(200, seed=1)
    assert judged(ours, theirs, higher, 1.0) == ("same", True)
    assert judged(ours, theirs, higher, 0.01) == ("inconclusive", False)
    assert paired(ours, ours, higher=higher, margin=0.01).verdict == "same"


def test_what_may_be_better_by_much_and_worse_by_little_holds() -> None:
    wide = np.linspace(-1, 1, 50) + 0.2  # its mean is 0.2, and its interval from 0.04 to 0.36
    assert judged(wide - 0.1, np.zeros(50), True, 0.1) == ("inconclusive", True)
    assert not judged(wide - 0.3, np.zeros(50), True, 0.1)[1]


def test_worse_is_worse_within_the_margin_too() -> None:
    assert judged(np.zeros(50) - 0.01, np.zeros(50), True, 0.1) == ("worse", False)


def test_other_images_cannot_be_paired() -> None:
    with pytest.raises(ValueError, match="3 images cannot be paired with 4"):
        paired(np.ones(3), np.ones(4), higher=True, margin=0)


def test_as_good_as_stops_where_it_is_worse() -> None:
    assert as_good_as({7: True, 10: True, 13: False, 16: True}) == 10
    assert as_good_as({7: False, 8: True}) is None
    assert as_good_as({16: True, 7: True}) == 16


def test_rival_is_never_quicker_than_the_method() -> None:
    plain = {16: 0.81, 13: 0.66, 10: 0.51, 8: 0.41}
    assert equal_time_rival(0.50, plain) == 10
    assert equal_time_rival(0.52, plain) == 13
    assert equal_time_rival(0.90, plain) is None


def test_interval_of_very_many_goes_on_where_the_bootstrap_ends() -> None:
    few, many = noisy(MANY), noisy(MANY + 1)
    assert interval(many).low == pytest.approx(interval(few).low, abs=0.002)
    assert interval(many).high == pytest.approx(interval(few).high, abs=0.002)


def test_a_difference_as_small_as_detectable_is_seen_in_eight_cases_of_ten() -> None:
    smallest = detectable(noisy(100))
    seen = 0
    for seed in range(200):
        found = paired(noisy(100, smallest, seed=seed), np.zeros(100), higher=True, margin=0)
        seen += found.verdict == "better"
    assert 0.7 <= seen / 200 <= 0.9
    assert found.detectable == pytest.approx(smallest, rel=0.3)


def test_one_image_can_show_nothing() -> None:
    assert detectable(np.ones(1)) == float("inf")


@pytest.mark.parametrize("count", [2, FEW - 1])
def test_fewer_images_than_a_verdict_takes_are_inconclusive_and_say_why(count: int) -> None:
    for ours in (1.0, 0.0, -1.0):
        found = paired(np.full(count, ours), np.zeros(count), higher=True, margin=0.1)
        assert found.said == f"inconclusive: {count} images; a verdict takes {FEW}"
        assert found.difference.mean == ours  # what was measured stands
        assert not holds(found, higher=True, margin=0.1)
    enough = paired(np.ones(FEW), np.zeros(FEW), higher=True, margin=0.1)
    assert (enough.said, enough.reason) == ("better", "")


def test_few_images_are_warned_of() -> None:
    assert too_few(FEW) is None
    assert f"{FEW - 1} images" in str(too_few(FEW - 1))
