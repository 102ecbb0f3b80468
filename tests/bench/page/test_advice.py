"""What the page advises at which speed-up, and which rows form the front."""

from __future__ import annotations

import msgspec
import pytest
from page_case import MEASURES, made_up_record, speed_record

from deltapass.bench.page.advice import advise, advise_at, front
from deltapass.bench.page.shares import END_TO_END, MACS, STEP, costs_of, plain_curves, share
from deltapass.bench.record import Difference, Interval, Macs, Record, Row, Times, Timing, Verdict

PSNR, RIGHT, KID = MEASURES


def row(
    name: str,
    speed: float,
    psnr: float,
    *,
    kind: str = "cache",
    width: float = 0.1,
    against: dict[str, Verdict] | None = None,
    equal_time: str | None = None,
) -> Row:
    cut = 1 / speed
    timing = Timing(
        median=cut, samples=(cut,), share=cut, share_low=cut, share_high=cut, stability="stable"
    )
    unknown = Interval(mean=0, low=-1, high=1)
    pairs = {
        other: {"psnr": Difference(difference=unknown, verdict=verdict, detectable=1)}
        for other, verdict in (against or {}).items()
    }  # fmt: skip
    return Row(
        name=name, label=name, kind=kind, steps=20, times=Times(end_to_end=timing),
        means={"psnr": Interval(mean=psnr, low=psnr - width, high=psnr + width)},
        against=pairs, equal_time=equal_time,
    )  # type: ignore[arg-type]  # fmt: skip


def record_of(*rows: Row) -> Record:
    plain = row("plain", 1.0, 50, kind="plain")
    return msgspec.structs.replace(speed_record(), rows=(plain, *rows), reference="plain")


def test_the_best_of_those_that_are_quick_enough() -> None:
    record = record_of(row("good", 1.6, 30), row("quick", 2.1, 25), row("poor", 2.2, 20))
    found = {advice.tier: advice.row for advice in advise(record, END_TO_END, PSNR)}
    assert found == {1.5: "good", 2.0: "quick"}


def test_tiers_of_one_answer_are_one_advice_at_the_greatest_speed_up() -> None:
    record = record_of(row("good", 2.6, 30))
    assert [(a.tier, a.row) for a in advise(record, END_TO_END, PSNR)] == [(2.5, "good")]


def test_less_is_better_where_the_measure_says_so() -> None:
    low = msgspec.structs.replace(PSNR, higher=False)
    record = record_of(row("high", 2, 30), row("low", 2, 20))
    advice = advise_at(record, END_TO_END, low, 2)
    assert advice is not None and advice.row == "low"
    assert front(record, END_TO_END, low)[0] == "low"


def test_nothing_so_quick_is_no_advice() -> None:
    assert advise_at(record_of(row("slow", 1.1, 30)), END_TO_END, PSNR, 1.25) is None


def test_a_tier_is_reached_exactly_or_not_at_all() -> None:
    record = record_of(row("just", 2.0, 30))
    assert advise_at(record, END_TO_END, PSNR, 2.0) is not None
    assert advise_at(record_of(row("nearly", 1.99, 30)), END_TO_END, PSNR, 2.0) is None


def test_fewer_steps_are_the_advice_where_they_beat_the_best() -> None:
    fewer = row("plain-10", 1.95, 40, kind="steps")
    cached = row("cached", 2.05, 30, against={"plain-10": "worse"}, equal_time="plain-10")
    advice = advise_at(record_of(fewer, cached), END_TO_END, PSNR, 2.0)
    assert advice is not None
    assert (advice.row, advice.passed_over) == ("plain-10", "cached")


def test_fewer_steps_that_take_far_longer_are_no_answer() -> None:
    fewer = row("plain-13", 1.5, 40, kind="steps")
    cached = row("cached", 2.05, 30, against={"plain-13": "worse"}, equal_time="plain-13")
    advice = advise_at(record_of(fewer, cached), END_TO_END, PSNR, 2.0)
    assert advice is not None
    assert (advice.row, advice.passed_over) == ("cached", None)


@pytest.mark.parametrize("verdict", ["better", "same", "inconclusive"])
def test_a_method_that_is_not_beaten_by_fewer_steps_is_the_advice(verdict: Verdict) -> None:
    fewer = row("plain-10", 1.95, 40, kind="steps")
    cached = row("cached", 2.05, 30, against={"plain-10": verdict}, equal_time="plain-10")
    advice = advise_at(record_of(fewer, cached), END_TO_END, PSNR, 2.0)
    assert advice is not None
    assert (advice.row, advice.passed_over) == ("cached", None)


@pytest.mark.parametrize(
    ("verdict", "alike"), [("inconclusive", ("b",)), ("same", ("b",)), ("better", ())]
)
def test_rows_are_told_apart_by_paired_differences_where_there_are_any(
    verdict: Verdict, alike: tuple[str, ...]
) -> None:
    a = row("a", 2, 30, against={"b": verdict})
    far, near = row("b", 2, 10), row("b", 2, 29.95)
    for b in (far, near):
        advice = advise_at(record_of(a, b), END_TO_END, PSNR, 2)
        assert advice is not None and advice.alike == alike


def test_rows_without_pairs_are_told_apart_by_their_intervals() -> None:
    record = record_of(row("a", 2, 30), row("near", 2, 29.9), row("far", 2, 29))
    advice = advise_at(record, END_TO_END, PSNR, 2)
    assert advice is not None and advice.alike == ("near",)


def test_rows_that_failed_or_have_no_finite_value_are_passed_over() -> None:
    failed = msgspec.structs.replace(row("failed", 3, 40), failure="it broke")
    record = record_of(failed, row("infinite", 3, float("inf")), row("good", 2, 30))
    advice = advise_at(record, END_TO_END, PSNR, 1.5)
    assert advice is not None and (advice.row, advice.alike) == ("good", ())


def test_the_front_is_what_nothing_beats_in_both() -> None:
    record = record_of(row("quick", 3, 20), row("beaten", 2, 19), row("good", 1.5, 30))
    assert front(record, END_TO_END, PSNR) == ("quick", "good", "plain")


def test_every_measure_has_its_own_advice() -> None:
    record = made_up_record()
    rows = {m.name: [a.row for a in advise(record, END_TO_END, m)] for m in MEASURES}
    assert rows["psnr"] == ["tuned-1.6x", "tuned-2x"]
    assert rows["right"][0] == rows["kid"][0] == "tuned-1.6x"


def test_multiply_accumulates_are_the_last_resort() -> None:
    assert costs_of(speed_record())[0] == END_TO_END
    untimed = tuple(
        msgspec.structs.replace(each, times=None, macs=Macs(paper=1, full=1, share=0.5))
        for each in speed_record().rows
    )
    record = msgspec.structs.replace(speed_record(), rows=untimed)
    assert costs_of(record) == (MACS,)
    assert share(record.rows[0], STEP) is None
    assert share(record.rows[0], MACS) == Interval(mean=0.5, low=0.5, high=0.5)


def test_plain_runs_of_another_lowering_or_solver_are_curves_of_their_own() -> None:
    def plain(name: str, steps: int, lowering: str = "inductor", **settings: str) -> Row:
        made = row(name, 20 / steps, steps, kind="plain" if steps == 20 else "steps")
        return msgspec.structs.replace(made, steps=steps, lowering=lowering, settings=settings)

    rows = (
        plain("a20", 20), plain("eager", 20, "eager"), plain("a10", 10), plain("a13", 13),
        plain("b20", 20, solver="DDIM"), plain("b10", 10, solver="DDIM"), row("cached", 2, 30),
    )  # fmt: skip
    record = msgspec.structs.replace(speed_record(), rows=rows, reference="a20")
    assert plain_curves(record) == (("a10", "a13", "a20"), ("b10", "b20"))
