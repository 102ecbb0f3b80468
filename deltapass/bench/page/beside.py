"""The files beside the page: the records as JSON, their rows as CSV."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Sequence
from typing import Any, Final

import msgspec

from deltapass.bench.page.advice import at_equal_time
from deltapass.bench.page.shares import COSTS, MACS, timing
from deltapass.bench.record import Record, Row

JSON_NAME: Final = "records.json"
CSV_NAME: Final = "rows.csv"
_COUNTS: Final = ("graphs", "breaks", "recompiles", "bodies", "blocks_run", "buffer_bytes")


def as_json(records: Sequence[Record]) -> bytes:
    """All records, whole, as one list."""
    return msgspec.json.format(msgspec.json.encode(list(records)), indent=1) + b"\n"


def as_csv(records: Sequence[Record]) -> str:
    """A line each row of all records, in raw units: seconds, bytes, values that are not scaled."""
    lines = [dict(_cells(record, row)) for record in records for row in record.rows]
    columns = list(dict.fromkeys(name for line in lines for name in line))
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(lines)
    return text.getvalue()


def _cells(record: Record, row: Row) -> Iterator[tuple[str, Any]]:
    """Columns in groups; those of measures exist where a record has the measure."""
    yield from (("suite", _text(record.suite.get("name", ""))), ("model", _text(record.model.name)))
    yield "row", _text(row.name)
    for name in ("label", "kind", "steps", "lowering"):
        yield name, _text(getattr(row, name))
    for cost in COSTS:
        yield from _timed(row, cost)
    for name in ("paper", "full", "share"):
        yield f"macs_{name}", None if row.macs is None else getattr(row.macs, name)
    yield from (("compile_seconds", row.compile_seconds), ("peak_bytes", row.peak_bytes))
    yield from ((name, getattr(row.counts, name)) for name in _COUNTS)
    yield "equal_time", _text(row.equal_time or "")
    for measure in record.measures:
        mean, pair = row.means.get(measure.name), at_equal_time(row, measure)
        for end in ("mean", "low", "high"):
            yield f"{measure.name}_{end}", None if mean is None else getattr(mean, end)
        yield f"{measure.name}_verdict", pair and pair.verdict
        yield f"{measure.name}_reason", _text(pair.reason if pair else "")
        yield f"{measure.name}_difference", pair and pair.difference.mean
        yield f"{measure.name}_detectable", pair and pair.detectable
    yield "settings", _text(msgspec.json.encode(row.settings).decode())
    yield from ((name, _text(getattr(row, name) or "")) for name in ("failure", "remark", "replay"))
    for name in ("commit", "date", "suite_sha256", "environment_sha256"):
        yield name, _text(getattr(record, name))
    yield from (("manifest_sha256", record.manifest.sha256), ("model_digest", record.model.digest))


def _timed(row: Row, cost: str) -> Iterator[tuple[str, Any]]:
    if cost == MACS:
        return
    found = timing(row, cost)
    yield f"{cost}_seconds", None if found is None else found.median
    for name in ("share", "share_low", "share_high", "stability"):
        yield f"{cost}_{name}", None if found is None else getattr(found, name)


def _text(value: Any) -> Any:
    """Texts that a spreadsheet would take for formulas are quoted, as they come from users."""
    risky = isinstance(value, str) and value.startswith(("=", "+", "-", "@", "\t", "\r"))
    return f"'{value}" if risky else value
