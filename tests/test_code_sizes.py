"""Limits on files and functions, and no model names: the pass knows graphs, not models."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SOURCES = sorted([*(ROOT / "deltapass").rglob("*.py"), *(ROOT / "backends").rglob("*.py")])

MAX_FILE_LINES = 320
MAX_ERROR_LINES = 640  # one list of small classes, which is one idea however long it grows
MAX_FUNCTION_LINES = 50
MODEL_NAMES = re.compile(
    r"\b(flux|pixart|sd3|wan|hunyuan|cogvideo\w*|sana|lumina\w*|ltx|mochi|qwen\w*)\b",
    re.IGNORECASE,
)

sources = pytest.mark.parametrize(
    "path", SOURCES, ids=lambda path: f"{path.parent.name}-{path.stem}"
)


@sources
def test_file_is_short(path: Path) -> None:
    lines = len(path.read_text().splitlines())
    limit = MAX_ERROR_LINES if path.name == "errors.py" else MAX_FILE_LINES
    assert lines <= limit, f"{path.name} has {lines} lines"


@sources
def test_functions_are_short(path: Path) -> None:
    long = [
        f"{node.name} (line {node.lineno}): {length} lines"
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and node.end_lineno is not None
        and (length := node.end_lineno - node.lineno + 1) > MAX_FUNCTION_LINES
    ]
    assert not long


@sources
def test_no_model_is_named(path: Path) -> None:
    found = [
        f"line {number}: {match.group()}"
        for number, line in enumerate(path.read_text().splitlines(), 1)
        for match in MODEL_NAMES.finditer(line)
    ]
    assert not found
