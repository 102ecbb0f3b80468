"""What the page's script draws from: a record as plain JSON, everything decided here.

Values of measures are in the unit in which they are shown; what is not finite is null.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import msgspec

from deltapass.bench.page.advice import front, speedup
from deltapass.bench.page.pictures import Pictures
from deltapass.bench.page.sections import has_strip
from deltapass.bench.page.shares import (
    COSTS,
    costs_of,
    is_stable,
    plain_curves,
    share,
    timing,
    usable,
)
from deltapass.bench.page.wording import KINDS, MARKS, brief, seconds
from deltapass.bench.record import Figure, Interval, Measure, Record, Row


def data_of(record: Record, pictures: Pictures) -> dict[str, Any]:
    """Of one record, for the script."""
    costs = costs_of(record)
    return {
        "model": record.model.title,
        "blocks": record.model.blocks,
        "reference": record.reference,
        "marks": dict(MARKS),
        "costs": [{"name": cost, "title": COSTS[cost]} for cost in costs],
        "measures": [_measure(measure) for measure in record.measures],
        "rows": [_row(row, record, costs) for row in record.rows],
        "curves": plain_curves(record),
        "fronts": {
            cost: {each.name: front(record, cost, each) for each in record.measures}
            for cost in costs
        },
        "figures": [_figure(figure) for figure in record.figures],
        "pictures": {
            **{name: getattr(pictures, name) for name in ("uris", "held", "psnr")},
            "seeds": record.manifest.seeds,
            "prompts": [_prompt(prompt) for prompt in record.manifest.prompts],
        },
    }


def embedded(data: Any) -> str:
    """JSON that is safe within a script element, whatever texts it holds."""
    text = msgspec.json.encode(data).decode()
    for letter in "<>&\u2028\u2029":
        text = text.replace(letter, f"\\u{ord(letter):04x}")
    return text


def _row(row: Row, record: Record, costs: Sequence[str]) -> dict[str, Any]:
    return {
        "name": row.name,
        "label": row.label,
        "kind": row.kind,
        "kindTitle": KINDS[row.kind],
        "steps": row.steps,
        "costs": {cost: _ends(share(row, cost)) for cost in costs},
        "stable": {cost: is_stable(row, cost) for cost in costs},
        "seconds": {cost: seconds(timing(row, cost)) for cost in costs},
        "speedups": {cost: speedup(row, cost) for cost in costs},
        "values": {
            measure.name: _ends(row.means.get(measure.name), measure.scale)
            for measure in record.measures
        },
        "schedule": row.schedule,
        "strip": has_strip(row),
        "errors": None if row.step_errors is None else [_finite(e) for e in row.step_errors],
        "equalTime": row.equal_time,
        "against": {other: _states(row, other, record) for other in row.against},
    }


def _states(row: Row, other: str, record: Record) -> dict[str, tuple[str, str]]:
    """Measure's name -> verdict and difference, as the table shows them."""
    pairs = row.against[other]
    return {
        measure.name: (
            pairs[measure.name].verdict,
            brief(pairs[measure.name], measure),
        )
        for measure in record.measures
        if measure.name in pairs
    }


def _measure(measure: Measure) -> dict[str, Any]:
    return {
        **{name: getattr(measure, name) for name in ("name", "title", "higher", "digits")},
        "floor": _ends(measure.floor, measure.scale),
    }


def _figure(figure: Figure) -> dict[str, Any]:
    return {
        "name": figure.name,
        "title": figure.title,
        "xTitle": figure.x_title,
        "yTitle": figure.y_title,
        "series": [
            {
                "name": each.name,
                **{
                    axis: [_finite(value) for value in getattr(each, axis)]
                    for axis in ("x", "y", "low", "high")
                },
            }
            for each in figure.series
        ],
        "grid": [[None if v is None else _finite(v) for v in line] for line in figure.grid],
    }


def _prompt(prompt: Any) -> str:
    return prompt if isinstance(prompt, str) else f"prompt {msgspec.json.encode(prompt).decode()}"


def _ends(value: Interval | None, scale: float = 1.0) -> list[float | None] | None:
    """[mean, low, high]; None where there is no finite mean."""
    if value is None or not usable(value):
        return None
    return [_finite(end * scale) for end in (value.mean, value.low, value.high)]


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
