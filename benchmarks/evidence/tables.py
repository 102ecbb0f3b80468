"""An entry of the evidence as tables for people."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from deltapass.bench.record import Measure
from evidence.meanings import MEASURES

Row = Mapping[str, Any]


def markdown(record: Row) -> str:
    """Every method's values; then how those that cache stand against plain steps.

    Args:
        record: What `equal_time.py` writes (`entry.py`).
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
        "" if row is first and name == "plain_psnr" else _shown(row["means"].get(name), measure)
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
        pair = row["less_plain"][steps].get(name)
        if pair is None:
            cells.append("")
            continue
        low, high = (_number(pair[end], measure, "+") for end in ("low", "high"))
        cells.append(f"{_word(pair)} ({low} to {high})")
    return [row["name"], steps, *cells]


def _word(pair: Row) -> str:
    verdict = pair["verdict"]
    if "reason" in pair:
        return f"{verdict}: {pair['reason']}"
    return f"**{verdict}**" if verdict == "worse" else str(verdict)


def _as_good_as(row: Row, measures: Mapping[str, Measure]) -> list[str]:
    reached = [row["as_good_as_plain_steps"][name] for name in measures]
    least = None if None in reached else min(reached)
    return [row["name"], *("none" if each is None else str(each) for each in (*reached, least))]


def _table(titles: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [titles, ["---"] * len(titles), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)
