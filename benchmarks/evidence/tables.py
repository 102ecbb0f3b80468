"""What is said of the methods, as a table for people and as numbers."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, Final

from evidence.intervals import Interval
from evidence.judging import MEASURES, Judged, Measure
from evidence.times import Share

WORDS: Final[Mapping[str, str]] = {"better": "better", "same": "same", "worse": "WORSE"}
DIGITS: Final = 6


def markdown(judged: Sequence[Judged], real: Mapping[str, Interval], fine: int) -> str:
    """One row a method; then, of those that cache, how they stand against plain steps."""
    titles = [measure.title.format(fine=fine) for measure in MEASURES.values()]
    lines = [_row(["method", "time", "speed-up", *titles]), _rule(len(titles) + 3)]
    lines += [_row(_cells(one, judged[0])) for one in judged]
    floor = [_shown(real.get(name), measure) for name, measure in MEASURES.items()]
    lines += [_row(["real images, others", "", "", *floor]), ""]
    lines += [_row(["method", "as good as so many plain steps", "at equal time"]), _rule(3)]
    lines += [
        _row([one.method.name, _reached(one), _against(one)])
        for one in judged
        if not one.method.plain
    ]
    return "\n".join(lines)


def numbers(judged: Sequence[Judged], real: Mapping[str, Interval]) -> dict[str, Any]:
    """All of it for a record, the differences from plain runs too."""
    return {
        "methods": [_numbers(one) for one in judged],
        "real": {name: _plain(value) for name, value in real.items()},
    }


def _numbers(one: Judged) -> dict[str, Any]:
    found = {
        "name": one.method.name,
        "steps": one.method.steps,
        "schedule": None if one.method.plain else repr(one.method.schedule),
        "time": None if one.time is None else _plain(one.time),
        "processor_time": None if one.processor is None else _plain(one.processor),
        "means": {name: _plain(value) for name, value in one.means.items()},
    }
    if one.method.plain:
        return found
    return {
        **found,
        "equal_time_plain_steps": one.rival,
        "as_good_as_plain_steps": {name: one.reached(name) for name in MEASURES},
        "less_plain": {
            str(steps): {
                name: {**_plain(pair.difference), "verdict": pair.verdict}
                for name, pair in pairs.items()
            }
            for steps, pairs in one.pairs.items()
        },
    }


def _plain(value: Interval | Share) -> dict[str, float]:
    return {name: round(number, DIGITS) for name, number in dataclasses.asdict(value).items()}


def _cells(one: Judged, first: Judged) -> list[str]:
    shown = [
        "-" if one is first and name == "plain_psnr" else _shown(one.means[name], measure)
        for name, measure in MEASURES.items()
    ]
    if one.time is None:
        return [one.method.name, "", "", *shown]
    time = f"{one.time.median:.3f} ({one.time.low:.3f}-{one.time.high:.3f})"
    return [one.method.name, time, f"{1 / one.time.median:.2f}x", *shown]


def _shown(value: Interval | None, measure: Measure) -> str:
    if value is None:
        return ""
    mean, low, high = (
        f"{number * measure.scale:.{measure.digits}f}"
        for number in (value.mean, value.low, value.high)
    )
    return f"{mean} ({low} to {high})"


def _reached(one: Judged) -> str:
    """Plain steps in the order of the measures, then the least of them."""
    steps = [one.reached(name) for name in MEASURES]
    least = None if None in steps else min(each for each in steps if each is not None)
    return f"{', '.join(_steps(each) for each in steps)}; in all: {_steps(least)}"


def _steps(steps: int | None) -> str:
    return "none" if steps is None else str(steps)


def _against(one: Judged) -> str:
    """The verdicts against the plain run that takes no less time, in the order of the measures."""
    if one.rival is None:
        return ""
    pairs = one.pairs[one.rival]
    verdicts = ", ".join(WORDS[pairs[name].verdict] for name in MEASURES)
    return f"{one.rival} steps: {verdicts}"


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _rule(columns: int) -> str:
    return f"|{'---|' * columns}"
