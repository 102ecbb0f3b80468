"""plan.json of schema version 1, as one of today's.

Version 1 knew two ways to predict: order 0, the newest delta, and order 1, d + w * (d - d_before),
where w is a scalar input `trend` of the cached variants. That is the linear predictor, with weights
1 + w and -w. The variants stay as they are; who runs them hands -w_1 to `trend`
(`deltapass.bundles.variants`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, final
from typing import Literal as Exactly

import msgspec
from msgspec import Struct

from deltapass.schedule.rules import Span

OLDER: Final = 1
TREND: Final = "trend"  # last input of a cached variant of order 1


@final
class _Variant(Struct, frozen=True):
    name: str
    kind: str
    spans: tuple[Span, ...]


@final
class _Spanned(Struct, frozen=True):
    span: Span
    streams: int


@final
class _Row(Struct, frozen=True, forbid_unknown_fields=True):
    variant: str
    trend: float | None


@final
class _Old(Struct, frozen=True):
    """What version 1 said otherwise, and what it takes to say it anew."""

    order: Exactly[0, 1]
    schedule: dict[str, Any]
    spans: tuple[_Spanned, ...]
    variants: tuple[_Variant, ...]
    table: tuple[_Row, ...]


def upgraded(content: Mapping[str, Any]) -> dict[str, Any]:
    """The content of a plan.json of version 1 in the form of version 2.

    Raises:
        msgspec.ValidationError: If it is not as version 1 was.
    """
    old = msgspec.convert(content, _Old)
    new = sorted({"predictor", "taken"} & content.keys())
    if new:
        raise msgspec.ValidationError(f"Object contains unknown field `{new[0]}`")
    kept = {name: value for name, value in content.items() if name != "order"}
    predictor = "linear" if old.order else "reuse"
    return {
        **kept,
        "schema": OLDER + 1,
        "predictor": predictor,
        "taken": 2 * old.order,
        "schedule": {**old.schedule, **({"predictor": predictor} if old.order else {})},
        "table": _table(old),
    }


def _table(old: _Old) -> list[dict[str, Any]]:
    streams = {spanned.span: spanned.streams for spanned in old.spans}
    variants = {variant.name: variant for variant in old.variants}
    given: dict[Span, list[int]] = {}  # span -> steps that gave its deltas
    rows = []
    for step, row in enumerate(old.table):
        new: dict[str, Any] = {"variant": row.variant, "reads": [], "weights": []}
        rows.append({**new, "branches": {}, "fit": None})
        variant = variants.get(row.variant)
        if variant is None:  # as a check of the whole will say
            continue
        for span in variant.spans:
            if variant.kind == "refresh":
                given.setdefault(span, []).insert(0, step)
                continue
            trend = row.trend or 0.0
            vectors = [[1 + trend, -trend]] * streams.get(span, 0)
            rows[-1]["reads"] = given.get(span, [])[: 1 + old.order]
            rows[-1]["weights"] = vectors if old.order else []
    return rows
