"""The paper's claims against records made by hand: every outcome follows from the numbers."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from bench_records import record, row, timing, values

from deltapass.bench.record import Figure, Record, Series, Times
from deltapass.bench.reporting.claims import CLAIMS, Finding, findings, unseen

PLAIN = row("plain", 1.0, {"kid": values(0, 1)})
FEWER = row("plain-13", 0.65, {"kid": values(0, 2), "psnr": values(30, 2)})


def ours(name: str, *, kid: float = 0, psnr: float = 30, seed: int = 3, **given: Any) -> Any:
    found = {"kid": values(kid, seed), "psnr": values(psnr, seed)}
    return row(name, given.pop("share", 0.62), found, equal_time="plain-13", **given)


def only(source: str, *records: Record) -> Finding:
    (found,) = [each for each in findings(records) if each.source == source]
    return found


@pytest.mark.parametrize(
    ("kid", "psnr", "outcome"),
    [(-1, 31, "agrees"), (1, 29, "does not"), (1, 31, "partly")],  # of KID less is better
)
def test_equal_time_agrees_where_no_measure_is_worse(kid: float, psnr: float, outcome: str) -> None:
    found = only(
        "Tables 1, 2, 6, 7", record(PLAIN, FEWER, ours("delta-dit-1.6x", kid=kid, psnr=psnr))
    )
    assert found.outcome == outcome
    assert "delta-dit-1.6x against plain-13: KID-EffLite0 x 1000" in found.ours
    assert bool(found.why) == (outcome != "agrees")


def test_what_cannot_be_told_apart_is_not_called_agreement() -> None:
    same = row("delta-dit-1.6x", 0.62, {"kid": values(0, 4)}, equal_time="plain-13")
    assert only("Tables 1, 2, 6, 7", record(PLAIN, FEWER, same)).outcome == "not told"


def test_rows_of_the_same_settings_are_compared_and_others_are_not() -> None:
    rows = (
        ours("delta-dit-1.6x", psnr=32),
        ours("delta-dit-2x", psnr=20),
        ours("reversed-1.6x", psnr=31, seed=4),
    )
    found = only("Table 5", record(PLAIN, FEWER, *rows))
    assert "delta-dit-1.6x against reversed-1.6x" in found.ours
    assert "2x" not in found.ours
    assert "better (+1.0" in found.ours


def test_failed_rows_and_random_weights_say_nothing() -> None:
    failed = ours("delta-dit", failure="it broke")
    made = record(PLAIN, FEWER, failed, ours("reversed", seed=4), suite="table5")
    assert findings([made]) == ()
    assert len(unseen([made])) == len(CLAIMS)


def test_time_is_held_against_what_the_paper_kept_of_its_macs() -> None:
    quick, slow = (ours("delta-dit-1.6x", times=Times(end_to_end=timing(s))) for s in (0.63, 0.9))
    assert only("Table 1", record(PLAIN, FEWER, quick)).outcome == "agrees"
    found = only("Table 1", record(PLAIN, FEWER, slow))
    assert found.outcome == "does not"
    assert found.ours == "delta-dit-1.6x: 1.61x by MACs is 1.11x"


def test_times_that_were_not_steady_tell_nothing() -> None:
    shaken = msgspec.structs.replace(timing(0.9), stability="inconclusive")
    found = only(
        "Table 1", record(PLAIN, FEWER, ours("delta-dit-1.6x", times=Times(end_to_end=shaken)))
    )
    assert found.outcome == "not told" and found.ours.endswith("the times were not steady")


def test_eight_bits_add_up_where_both_are_quicker_than_each() -> None:
    def made(both: float) -> Record:
        bits = {"weights": "int8"}
        return record(
            PLAIN,
            row("plain-int8", 0.8, {"kid": values(0, 5)}, kind="plain", settings=bits),
            ours("delta-dit"),
            ours("delta-dit-int8", settings=bits, share=both),
            suite="table9",
        )

    assert only("Table 9", made(0.5)).outcome == "agrees"
    found = only("Table 9", made(0.7))
    assert (found.ours, found.outcome) == ("caching 1.61x, 8 bits 1.25x, both 1.43x", "does not")


def test_solvers_are_held_against_their_own_plain_run() -> None:
    def of(name: str, kid: float, solver: str, seed: int) -> Any:
        kind = "plain" if name.startswith("plain") else "cache"
        settings = {"solver": solver}
        return row(name, 1.0, {"kid": values(kid, seed)}, kind=kind, settings=settings)

    made = record(
        PLAIN,
        of("plain-a", 5, "A", 1),
        of("plain-b", 0, "B", 2),
        of("delta-dit-a", 4, "A", 3),
        of("delta-dit-b", 1, "B", 4),
        suite="table4",
    )
    found = only("Table 4", made)
    assert found.outcome == "partly"
    assert found.ours.count("better") == found.ours.count("worse") == 1


@pytest.mark.parametrize(("best", "outcome"), [(0.8, "agrees"), (0.2, "does not")])
def test_sweeps_are_judged_by_where_the_best_lies(best: float, outcome: str) -> None:
    rows = [
        ours(f"delta-dit-b{at}", kid=abs(at - best), settings={"boundary": at})
        for at in (0.2, 0.5, 0.8)
    ]
    found = only("Fig. 6", record(PLAIN, FEWER, *rows, suite="fig6"))
    assert found.outcome == outcome
    assert f"best at boundary = {best:g}" in found.ours
    alike = [ours(f"delta-dit-b{at}", settings={"boundary": at}) for at in (0.2, 0.5, 0.8)]
    assert only("Fig. 6", record(PLAIN, FEWER, *alike, suite="fig6")).outcome == "not told"


def figure(name: str, **given: Any) -> Figure:
    return Figure(name=name, title="", x_title="", y_title="", **given)


def test_likeness_agrees_only_where_all_lie_above() -> None:
    def made(*grid: tuple[float | None, ...]) -> Record:
        return record(PLAIN, suite="fig4c", figures=(figure("cosine", grid=grid),))

    assert only("Fig. 4c", made((0.95, 0.99), (None, None))).outcome == "agrees"
    found = only("Fig. 4c", made((0.95, 0.99), (0.92, 0.5)))
    assert (found.outcome, found.ours[:3]) == ("partly", "75%")
    assert only("Fig. 4c", made((0.1, 0.95), (0.3, 0.5))).outcome == "does not"


@pytest.mark.parametrize(("fine", "outcome"), [(-0.4, "agrees"), (-0.01, "does not")])
def test_deep_caching_is_said_to_cost_detail(fine: float, outcome: str) -> None:
    x = (0.0, 0.25, 0.5, 0.75, 1.0)
    series = (
        Series(name="plain", x=x, y=x),
        Series(name="Δ-Cache, shallow, less plain", x=x, y=(0, 0.2, 0.2, 0.1, 0.1)),
        Series(name="Δ-Cache, deep, less plain", x=x, y=(0, 0.1, 0.1, fine, fine)),
    )
    made = record(PLAIN, suite="fig5", figures=(figure("spectrum", series=series),))
    assert only("Fig. 5", made).outcome == outcome


def test_what_nothing_was_measured_of_is_listed() -> None:
    made = record(PLAIN, FEWER, ours("delta-dit-1.6x", psnr=31))
    missing = {claim.source for claim in unseen([made])}
    assert "Tables 1, 2, 6, 7" not in missing
    assert {"Table 9", "Fig. 5"} <= missing
