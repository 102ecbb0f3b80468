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
    assert paired(ours, theirs, higher=True).verdict == "better"
    assert paired(theirs, ours, higher=True).verdict == "worse"


def test_less_is_better_where_it_is() -> None:
    ours, theirs = noisy(200), noisy(200) + 1
    assert paired(ours, theirs, higher=False).verdict == "better"
    assert paired(theirs, ours, higher=False).verdict == "worse"


def test_no_difference_shown_is_the_same() -> None:
    assert paired(noisy(200), noisy(200, seed=1), higher=True).verdict == "same"
    assert paired(noisy(50), noisy(50), higher=True).verdict == "same"


def test_other_images_cannot_be_paired() -> None:
    with pytest.raises(ValueError, match="3 images cannot be paired with 4"):
        paired(np.ones(3), np.ones(4), higher=True)


def test_as_good_as_stops_where_it_is_worse() -> None:
    assert as_good_as({7: "better", 10: "same", 13: "worse", 16: "same"}) == 10
    assert as_good_as({7: "worse", 8: "same"}) is None
    assert as_good_as({16: "same", 7: "better"}) == 16


def test_rival_is_never_quicker_than_the_method() -> None:
    plain = {16: 0.81, 13: 0.66, 10: 0.51, 8: 0.41}
    assert equal_time_rival(0.50, plain) == 10
    assert equal_time_rival(0.52, plain) == 13
    assert equal_time_rival(0.90, plain) is None
