"""The tables of the paper, as printed: its authors' figures, none of them ours."""

from __future__ import annotations

import functools
import tomllib
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

from deltapass.errors import BenchError

FOLDER: Final = Path(__file__).parents[1] / "assets" / "paper"
SOURCE: Final = "the paper's figures, measured by its authors (latency in ms on an A100); not ours"


@functools.cache
def paper_tables() -> MappingProxyType[str, Any]:
    """Key of a suite's `paper` -> `title`, `about`, `columns`, `rows` and `source`.

    Rows have one value a column; an empty text stands where the paper has no figure.
    """
    read = tomllib.loads((FOLDER / "tables.toml").read_text())
    return MappingProxyType({name: {**table, "source": SOURCE} for name, table in read.items()})


def paper_table(name: str) -> dict[str, Any]:
    """One of them, as a record holds it.

    Raises:
        BenchError: If there is no such table.
    """
    tables = paper_tables()
    if name not in tables:
        raise BenchError(f"the paper has no table {name!r}", f"It has {', '.join(tables)}")
    return dict(tables[name])
