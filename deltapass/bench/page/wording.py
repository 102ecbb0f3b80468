"""Numbers and states as the page writes them."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Final

from deltapass.bench.record import Difference, Interval, Measure, Timing

NOTHING: Final = "\N{EN DASH}"
TIMES: Final = "\N{MULTIPLICATION SIGN}"
MINUS: Final = "\N{MINUS SIGN}"
# A shape and a word each, so that no state is told by its colour alone.
MARKS: Final[Mapping[str, str]] = MappingProxyType(
    {"better": "▲", "same": "=", "worse": "▼", "inconclusive": "?"}
)
KINDS: Final[Mapping[str, str]] = MappingProxyType(
    {"plain": "plain", "steps": "fewer steps", "cache": "cache", "rival": "other library"}
)
LIBRARIES: Final = ("deltapass", "python", "torch", "diffusers", "transformers", "cache-dit")
_BYTES: Final = ("B", "KiB", "MiB", "GiB", "TiB")
_LARGE: Final = (("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3))


def number(value: float | None, digits: int = 2, sign: str = "") -> str:
    """A number with so many digits after the point."""
    if value is None or math.isnan(value):
        return NOTHING
    if math.isinf(value):
        return "∞" if value > 0 else f"{MINUS}∞"
    shown = f"{value:{sign}.{digits}f}"
    if float(shown) == 0:
        shown = shown.replace("-", "+" if sign else "")
    return shown.replace("-", MINUS)


def scaled(value: float | None, measure: Measure, sign: str = "") -> str:
    """A value of a measure, in the unit in which it is shown."""
    return number(None if value is None else value * measure.scale, measure.digits, sign)


def between(value: Interval, measure: Measure, sign: str = "") -> str:
    """The ends of an interval."""
    return f"{scaled(value.low, measure, sign)} to {scaled(value.high, measure, sign)}"


def signed(pair: Difference, measure: Measure) -> str:
    """A difference with its interval."""
    inner = pair.difference
    return f"{scaled(inner.mean, measure, '+')} ({between(inner, measure, '+')})"


def brief(pair: Difference, measure: Measure) -> str:
    """A difference alone, and why it has no verdict."""
    shown = scaled(pair.difference.mean, measure, "+")
    return f"{shown}; {pair.reason}" if pair.reason else shown


def times_quicker(share: Interval | None) -> str:
    """The speed-up that belongs to a share of the reference's time."""
    return NOTHING if share is None else f"{number(1 / share.mean)}{TIMES}"


def range_quicker(share: Interval | None) -> str:
    """The speed-ups of the slowest and the quickest round; empty where they are one number."""
    if share is None or share.low <= 0 or share.low == share.high:
        return ""
    return f"{number(1 / share.high)} to {number(1 / share.low)}{TIMES}"


def seconds(value: Timing | float | None) -> str:
    """A time, in the unit that suits it."""
    found = value.median if isinstance(value, Timing) else value
    if found is None or not math.isfinite(found):
        return NOTHING
    if found >= 100:
        return f"{found:.0f} s"
    if found >= 1:
        return f"{found:.2f} s"
    return f"{found * 1e3:.3g} ms" if found >= 1e-3 else f"{found * 1e6:.3g} µs"


def bytes_of(value: float | None) -> str:
    """A number of bytes, in the unit that suits it."""
    if value is None:
        return NOTHING
    size = float(value)
    for unit in _BYTES[:-1]:
        if size < 1024:
            return f"{size:.3g} {unit}"
        size /= 1024
    return f"{size:.3g} {_BYTES[-1]}"


def large(value: float | None) -> str:
    """A large count: 1.83 T."""
    if value is None or not math.isfinite(value):
        return NOTHING
    for unit, size in _LARGE:
        if abs(value) >= size:
            return f"{value / size:.3g} {unit}"
    return f"{value:.3g}"


def plainly(value: Any) -> str:
    """Any piece of data of a record, as people write it."""
    if value is None:
        return NOTHING
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, list | tuple) and not any(isinstance(each, dict | list) for each in value):
        return ", ".join(plainly(each) for each in value)
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)


def versions(environment: Mapping[str, Any]) -> str:
    """Of the libraries that a record's environment names."""
    named = (f"{name} {environment[name]}" for name in LIBRARIES if environment.get(name))
    return ", ".join(named) or NOTHING


FILTERS: Final[Mapping[str, Any]] = MappingProxyType(
    {
        function.__name__: function
        for function in (
            *(number, scaled, between, signed, brief, times_quicker, range_quicker, seconds),
            *(bytes_of, large, plainly, versions),
        )
    }
)
