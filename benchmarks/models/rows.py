"""Tables of a TOML file as keyword arguments."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

Rows = dict[str, dict[str, Any]]


def read_rows(path: Path) -> Rows:
    """Name -> the entries of a table; `like` in a table names an earlier one to start from."""
    rows: Rows = {}
    for name, row in tomllib.loads(path.read_text()).items():
        like = row.pop("like", None)
        rows[name] = {**(rows[like] if like else {}), **row}
    return rows
