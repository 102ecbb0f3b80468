"""Records of all schemas: old ones by the rules of today, those to come refused in words."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest
from bench_records import record, row, values

from deltapass.bench.reading import read_record, records_in
from deltapass.bench.record import SCHEMA, Manifest, Record
from deltapass.errors import BenchError


def written(folder: Path, made: Record, **fields: Any) -> Path:
    """As the first schema was written: no difference had a reason."""
    data = msgspec.to_builtins(made)
    for each in data["rows"]:
        for pairs in each["against"].values():
            for pair in pairs.values():
                del pair["reason"]
    path = folder / "record.json"
    path.write_bytes(msgspec.json.encode({**data, **fields}))
    return path


def made(seeds: int) -> Record:
    rows = (row("plain", 1.0, {"psnr": values(30)}), row("ours", 0.5, {"psnr": values(20, 1)}))
    manifest = Manifest(sha256="c" * 64, seeds=tuple(range(seeds)), prompts=(1,) * seeds)
    return record(*rows, manifest=manifest)


def test_verdicts_of_the_first_schema_stand_where_the_images_are_enough(tmp_path: Path) -> None:
    found = read_record(written(tmp_path, made(30), schema=1))
    assert found.rows[1].against["plain"]["psnr"].said == "worse"


def test_verdicts_of_the_first_schema_on_few_images_are_taken_back(tmp_path: Path) -> None:
    found = read_record(written(tmp_path, made(2), schema=1)).rows[1]
    assert found.against["plain"]["psnr"].said == "inconclusive: 2 images; a verdict takes 30"
    assert found.values == made(2).rows[1].values


def test_records_that_cannot_be_read_say_why(tmp_path: Path) -> None:
    path = written(tmp_path, made(30), schema=SCHEMA + 1, news="unknown today")
    with pytest.raises(BenchError, match=rf"schema {SCHEMA + 1}; this version reads up to"):
        read_record(path)
    path.write_text("[]")
    with pytest.raises(BenchError, match="Judge again"):
        read_record(path)
    with pytest.raises(BenchError, match="holds no records"):
        records_in(tmp_path)
