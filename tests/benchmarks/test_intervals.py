"""Intervals that hold what they should, and verdicts that need evidence."""

from __future__ import annotations

import numpy as np
import pytest
from evidence.intervals import as_good_as, equal_time_rival, interval, paired


def noisy(count: int, mean: float = 0.0, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(mean, 1.0, count)


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
    found = paired(ours, theirs, higher=higher, margin=1.0)
    assert (found.verdict, found.holds) == ("same", True)
    found = paired(ours, theirs, higher=higher, margin=0.01)
    assert (found.verdict, found.holds) == ("inconclusive", False)
    assert paired(ours, ours, higher=higher, margin=0.01).verdict == "same"


def test_what_may_be_better_by_much_and_worse_by_little_holds() -> None:
    wide = np.linspace(-1, 1, 50) + 0.2  # its mean is 0.2, and its interval from 0.04 to 0.36
    found = paired(wide - 0.1, np.zeros(50), higher=True, margin=0.1)
    assert (found.verdict, found.holds) == ("inconclusive", True)
    assert not paired(wide - 0.3, np.zeros(50), higher=True, margin=0.1).holds


def test_worse_is_worse_within_the_margin_too() -> None:
    found = paired(np.zeros(50) - 0.01, np.zeros(50), higher=True, margin=0.1)
    assert (found.verdict, found.holds) == ("worse", False)


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
