"""Verification along the planned trajectory: what only a run of several steps shows."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from memory_bundle import MemoryBundle, memory_bundle
from models import make
from msgspec.structs import replace

import deltapass
from deltapass.errors import InternalError
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


def with_row(bundle: MemoryBundle, step: int, **change: Any) -> dict[str, float]:
    """Errors of a bundle whose table says something else in one row."""
    table = list(bundle.plan.table)
    table[step] = replace(table[step], **change)
    plan = replace(bundle.plan, table=tuple(table))
    return dict(row_errors(plan, (bundle.segments, bundle.segments), bundle.exported))


@pytest.mark.parametrize(
    ("step", "change"),
    [
        (3, {"reads": (0, 2)}),
        (3, {"weights": ((1.4, -0.5),)}),
        (4, {"weights": ((2.0, -1.0),)}),
        (4, {"branches": {"-": ((1.0, 0.0),)}}),
    ],
)
def test_numbers_of_the_table_that_a_session_does_not_use_are_found(
    step: int, change: dict[str, Any], bundle: MemoryBundle
) -> None:
    wrong = {name for name, error in with_row(bundle, step, **change).items() if error > 1e-5}
    assert wrong == {f"{step}, cached_1_3"}


def test_a_fit_that_the_table_tells_otherwise_is_found() -> None:
    schedule = deltapass.ExplicitSchedule(TABLE, predictor="chebyshev")
    bundle = memory_bundle(make("adaln", depth=4), schedule=schedule)
    right = bundle.plan.table[2].fit
    assert right is not None and set(errors(bundle).values()) == {0.0}
    found = with_row(bundle, 2, fit=replace(right, gains=(*right.gains[:-1], 0.1)))
    assert found["1, cached_1_3"] == 0 and found["3, cached_1_3"] > 1e-5


def test_a_table_that_refreshes_elsewhere_than_the_schedule_is_no_bundle(
    bundle: MemoryBundle,
) -> None:
    refresh = bundle.plan.table[2]
    change = {name: getattr(refresh, name) for name in ("variant", "reads", "weights")}
    with pytest.raises(
        InternalError, match=r"row 3 of the table is refresh_1_3, .* skips blocks 1..2 there"
    ):
        with_row(bundle, 3, **change)


def test_a_bundle_that_caches_nothing_has_no_rows_to_compare() -> None:
    plain = memory_bundle(make("adaln", depth=2), schedule="none", steps=3)
    assert not dict(row_errors(plain.plan, (plain.segments, plain.segments), plain.exported))
