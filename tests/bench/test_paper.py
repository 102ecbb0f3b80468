"""The paper's tables: whole, labelled as the paper's, and found by name."""

from __future__ import annotations

import pytest

from deltapass.bench.paper import paper_table, paper_tables
from deltapass.errors import BenchError


def test_every_row_has_a_value_for_every_column() -> None:
    assert len(paper_tables()) == 11
    for table in paper_tables().values():
        assert all(len(row) == len(table["columns"]) for row in table["rows"])
        assert "not ours" in table["source"]


def test_tables_are_found_by_name() -> None:
    table = paper_table("table1_pixart_alpha")
    assert table["rows"][0][:2] == ["PixArt-a T=20", 85.651]
    with pytest.raises(BenchError, match=r"no table 'table99'.*table1_pixart_alpha"):
        paper_table("table99")
