"""Verification along the planned trajectory: what only a run of several steps shows."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from memory_bundle import MemoryBundle, memory_bundle
from models import make

import deltapass
from deltapass.exporting.verify_rows import row_errors
from deltapass.schedule.rules import Span
from deltapass.schedule.weights import Weights

A = Span(1, 3)
TABLE = (None, A, None, A, A, None)
FIRST = ["1, cached_1_3 with a refresh at 1", "2, refresh_1_3 with a refresh at 1"]


@pytest.fixture(scope="module")
def bundle() -> MemoryBundle:
    own = (*(None,) * 4, Weights(shared=((1.4, -0.5),)), None)
    schedule = deltapass.ExplicitSchedule(TABLE, predictor="linear", weights=own)
    return memory_bundle(make("adaln", depth=4), schedule=schedule)


def errors(bundle: MemoryBundle, change: Callable[..., Any] | None = None) -> dict[str, float]:
    """Of every row, with another prediction than the one that was exported."""
    (name,) = (name for name in bundle.segments if name.startswith("predict"))
    changed = {**bundle.segments, **({name: change} if change is not None else {})}
    return dict(row_errors(bundle.plan, (changed, bundle.segments), bundle.exported))


def test_every_row_is_compared_and_the_first_ones_after_a_refresh(bundle: MemoryBundle) -> None:
    found = errors(bundle)
    rows = [f"{step}, {row.variant}" for step, row in enumerate(bundle.plan.table)]
    assert list(found) == [*rows, *FIRST, "3, cached_1_3 with a refresh at 1"]
    assert set(found.values()) == {0.0}


def test_deltas_in_the_wrong_order_are_found(bundle: MemoryBundle) -> None:
    (predict,) = (run for name, run in bundle.segments.items() if name.startswith("predict"))
    found = errors(bundle, lambda d, before, w, live_in: predict(before, d, w, live_in))
    wrong = [name for name, error in found.items() if error > 1e-5]
    assert wrong == ["3, cached_1_3", "4, cached_1_3", "3, cached_1_3 with a refresh at 1"]


def test_a_bundle_that_caches_nothing_has_no_rows_to_compare() -> None:
    plain = memory_bundle(make("adaln", depth=2), schedule="none", steps=3)
    assert not dict(row_errors(plain.plan, (plain.segments, plain.segments), plain.exported))
