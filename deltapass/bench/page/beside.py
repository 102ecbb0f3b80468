"""The files beside the page: the records as JSON, their rows as CSV."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from typing import Any, Final

import msgspec

from deltapass.bench.record import Record, Row
from deltapass.bench.tables import csv_text

JSON_NAME: Final = "records.json"
CSV_NAME: Final = "rows.csv"
FORMULAS: Final = ("=", "+", "-", "@", "\t", "\r")  # what spreadsheets take for the start of one


def as_json(records: Sequence[Record]) -> bytes:
    """All records, whole, as one list."""
    return msgspec.json.format(msgspec.json.encode(list(records)), indent=1) + b"\n"


def as_csv(records: Sequence[Record]) -> str:
    """A line each row of all records, in raw units, with what it takes to measure it again."""
    lines = [
        {**line, **_again(record, row)}
        for record in records
        for line, row in zip(_lines(record), record.rows, strict=True)
    ]
    columns = list(dict.fromkeys(name for line in lines for name in line))
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows({name: _literal(cell) for name, cell in line.items()} for line in lines)
    return text.getvalue()


def _lines(record: Record) -> list[dict[str, Any]]:
    return list(csv.DictReader(io.StringIO(csv_text(record))))


def _again(record: Record, row: Row) -> dict[str, str]:
    return {
        "settings": msgspec.json.encode(row.settings).decode(),
        "remark": row.remark,
        "replay": row.replay,
        "commit": record.commit,
        "date": record.date,
        "suite_sha256": record.suite_sha256,
        "environment_sha256": record.environment_sha256,
        "manifest_sha256": record.manifest.sha256,
        "model_digest": record.model.digest,
    }


def _literal(cell: str) -> str:
    """Texts are users': one that a spreadsheet would run is quoted; numbers stay as they are."""
    if not cell.startswith(FORMULAS):
        return cell
    try:
        float(cell)
    except ValueError:
        return f"'{cell}"
    return cell
