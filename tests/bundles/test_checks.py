"""Tables of plan.json that say what no run can do: rows that weigh deltas, and fits."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from memory_bundle import memory_bundle
from models import make
from msgspec.structs import replace

import deltapass
from deltapass.bundles.checks import read_checked
from deltapass.bundles.manifest import PLAN_FILE, BundlePlan, FileSpec, FitSpec, to_text
from deltapass.errors import BundleError
from deltapass.schedule.rules import Span

A = Span(1, 3)
TABLE = (None, None, A, None, A, None)


def plan_of(predictor: str) -> BundlePlan:
    schedule = deltapass.ExplicitSchedule(TABLE, predictor)
    plan = memory_bundle(make("adaln", depth=4), schedule=schedule).plan
    file = FileSpec(bytes=0, sha256="0" * 64)
    return replace(plan, files={segment.file: file for segment in plan.segments})


@pytest.fixture(scope="module")
def plans() -> dict[str, BundlePlan]:
    return {name: plan_of(name) for name in ("quadratic", "chebyshev")}


def fit(basis: Sequence[float], gains: Sequence[float]) -> dict[str, Any]:
    return {"fit": FitSpec(basis=tuple(basis), gains=tuple(gains))}


MISFITS: dict[str, tuple[str, int, dict[str, Any], str]] = {
    "no basis": ("chebyshev", 0, fit([1], [1]), r"row 0 makes 1 coefficients of 1, there are \[0"),
    "another basis": ("chebyshev", 3, fit([1], [1, 1]), r"row 3 makes 2 .* there are \[2\]"),
    "too many": ("chebyshev", 1, fit([1], [1] * 5), "row 1 makes 5 coefficients of 1"),
    "fewer": ("chebyshev", 3, fit([1, 1], [1]), "row 3 makes 1 coefficients of 2"),
    "gains at first": ("chebyshev", 0, fit([], [1, 0]), "row 0 makes the first delta another"),
    "gain at first": ("chebyshev", 0, fit([], [0.5]), "row 0 makes the first delta another"),
    "some rows": ("chebyshev", 1, {"fit": None}, "row 1 has a fit and gives no delta to fit, or"),
    "cached row": ("chebyshev", 2, fit([1], [1]), "row 2 has a fit and gives no delta to fit"),
    "last row": ("chebyshev", 5, fit([1], [1]), "row 5 has a fit and gives no delta to fit"),
    "no fit": ("quadratic", 0, fit([], [1]), "row 0 has a fit and gives no delta to fit"),
    "coefficients": (
        *("chebyshev", 2, {"weights": ((1.0, 1.0, 1.0, 0.0),)}),
        "row 2 weighs more than the 2 deltas that are there",
    ),
    "weights": ("quadratic", 2, {"weights": ((1.0, -1.0, 0.5),)}, "row 2 weighs more than the 2"),
    "branches": (
        *("quadratic", 2, {"branches": {"cond": ((1.0, -1.0, 0.5),)}}),
        "row 2 weighs more than the 2 deltas that are there",
    ),
}


def read(plan: BundlePlan, folder: Path) -> BundlePlan:
    (folder / PLAN_FILE).write_text(to_text(plan), encoding="utf-8")
    return read_checked(folder)


@pytest.mark.parametrize("predictor", ["quadratic", "chebyshev"])
def test_what_is_exported_can_be_run(
    predictor: str, plans: dict[str, BundlePlan], tmp_path: Path
) -> None:
    assert read(plans[predictor], tmp_path) == plans[predictor]


@pytest.mark.parametrize("misfit", MISFITS)
def test_a_table_that_no_run_can_follow_is_refused(
    misfit: str, plans: dict[str, BundlePlan], tmp_path: Path
) -> None:
    predictor, step, change, says = MISFITS[misfit]
    rows = list(plans[predictor].table)
    rows[step] = replace(rows[step], **change)
    with pytest.raises(BundleError, match=f"contradicts itself: {says}"):
        read(replace(plans[predictor], table=tuple(rows)), tmp_path)
