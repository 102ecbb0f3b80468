"""Records from disk, those of older schemas too."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import msgspec

from deltapass.bench.metrics.intervals import doubted
from deltapass.bench.record import SCHEMA, Record, Row
from deltapass.errors import BenchError

RECORD: Final = "record"
WITHOUT_REASONS: Final = 1  # gave verdicts on however few images


class _Head(msgspec.Struct):
    """What any schema has."""

    schema: int


def records_in(output: Path) -> dict[Path, Record]:
    """Records below a folder, by the folder that each lies in.

    Raises:
        BenchError: If there are none, or one cannot be read.
    """
    paths = sorted(output.glob(f"*/*/{RECORD}.json"))
    if not paths:
        raise BenchError(f"{output} holds no records", "Run a suite with that --output first")
    return {path.parent: read_record(path) for path in paths}


def read_record(path: Path) -> Record:
    """One record, its verdicts by the rules of today.

    Raises:
        BenchError: If it cannot be read, is none, or is of a schema to come.
    """
    try:
        content = path.read_bytes()
        schema = msgspec.json.decode(content, type=_Head).schema
        if schema > SCHEMA:
            raise BenchError(
                f"record {path} is of schema {schema}; this version reads up to {SCHEMA}",
                "Update deltapass, or judge again with this one: --only judge",
            )
        record = msgspec.json.decode(content, type=Record)
    except (OSError, msgspec.DecodeError) as error:
        raise BenchError(f"record {path}: {error}", "Judge again: --only judge") from error
    return _with_reasons(record) if schema == WITHOUT_REASONS else record


def _with_reasons(record: Record) -> Record:
    images = len(record.manifest.seeds)

    def row_of(row: Row) -> Row:
        against = {
            other: {name: doubted(pair, images) for name, pair in pairs.items()}
            for other, pairs in row.against.items()
        }
        return msgspec.structs.replace(row, against=against)

    return msgspec.structs.replace(record, rows=tuple(map(row_of, record.rows)))
