"""What is said of the methods: the numbers of a record, and a record as tables for people."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

import msgspec

from deltapass.bench.record import Interval
from evidence.judging import Judged
from evidence.meanings import MEASURES, Measure
from evidence.times import Share

DIGITS: Final = 6
Row = Mapping[str, Any]

# ---- numbers -------------------------------------------------------------------------------------


def numbers(judged: Sequence[Judged], real: Mapping[str, Interval]) -> dict[str, Any]:
    """All of it for a record, the differences from plain runs too."""
    return {
        "margins": {name: MEASURES[name].margin for name in judged[0].means},
        "methods": [_numbers(one) for one in judged],
        "real": {name: _plain(value) for name, value in real.items()},
    }


def _numbers(one: Judged) -> dict[str, Any]:
    found = {
        "name": one.method.name,
        "steps": one.method.steps,
        "schedule": None if one.method.plain else repr(one.method.schedule),
        "time": None if one.time is None else _plain(one.time),
        "means": {name: _plain(value) for name, value in one.means.items()},
    }
    if one.method.plain:
        return found
    return {
        **found,
        "equal_time_plain_steps": one.rival,
        "as_good_as_plain_steps": {name: one.reached(name) for name in one.means},
        "less_plain": {
            str(steps): {
                name: {**_plain(pair.difference), "verdict": pair.verdict}
                for name, pair in pairs.items()
            }
            for steps, pairs in one.pairs.items()
        },
    }


def _plain(value: Interval | Share) -> dict[str, float]:
    return {name: round(number, DIGITS) for name, number in msgspec.to_builtins(value).items()}


# ---- a record as tables --------------------------------------------------------------------------


def markdown(record: Row) -> str:
    """Every method's values; then how those that cache stand against plain steps.

    Args:
        record: What `equal_time.py` writes.
    """
    measures = {name: MEASURES[name] for name in record["margins"]}
    titles = [measure.title.format(**record["options"]) for measure in measures.values()]
    rows = record["methods"]
    ours = [row for row in rows if row["schedule"] is not None]
    real = [_shown(record["real"].get(name), measure) for name, measure in measures.items()]
    values = _table(
        ["method", "time", "speed-up", *titles],
        [*(_values(row, measures, rows[0]) for row in rows), ["real images", "", "", *real]],
    )
    equal = _table(
        ["method", "plain steps that take no less time", *titles],
        (_at_equal_time(row, measures) for row in ours if row["equal_time_plain_steps"]),
    )
    good = _table(
        ["at least as good as so many plain steps", *titles, "in all"],
        (_as_good_as(row, measures) for row in ours),
    )
    return "\n\n".join((values, equal, good))


def _values(row: Row, measures: Mapping[str, Measure], first: Row) -> list[str]:
    shown = [
        "" if row is first and name == "plain_psnr" else _shown(row["means"][name], measure)
        for name, measure in measures.items()
    ]
    time = row["time"]
    if time is None:
        return [row["name"], "", "", *shown]
    return [row["name"], f"{time['median']:.3f}", f"{1 / time['median']:.2f}x", *shown]


def _shown(value: Row | None, measure: Measure) -> str:
    if value is None:
        return ""
    mean, low, high = (_number(value[name], measure) for name in ("mean", "low", "high"))
    return f"{mean} ({low} to {high})"


def _number(value: float, measure: Measure, sign: str = "") -> str:
    return f"{value * measure.scale:{sign}.{measure.digits}f}"


def _at_equal_time(row: Row, measures: Mapping[str, Measure]) -> list[str]:
    """The verdicts against the plain run that takes no less time, with what they rest on."""
    steps = str(row["equal_time_plain_steps"])
    cells = []
    for name, measure in measures.items():
        pair = row["less_plain"][steps][name]
        low, high = (_number(pair[end], measure, "+") for end in ("low", "high"))
        cells.append(f"{_word(pair['verdict'])} ({low} to {high})")
    return [row["name"], steps, *cells]


def _word(verdict: str) -> str:
    return f"**{verdict}**" if verdict == "worse" else verdict


def _as_good_as(row: Row, measures: Mapping[str, Measure]) -> list[str]:
    reached = [row["as_good_as_plain_steps"][name] for name in measures]
    least = None if None in reached else min(reached)
    return [row["name"], *("none" if each is None else str(each) for each in (*reached, least))]


def _table(titles: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [titles, ["---"] * len(titles), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)
