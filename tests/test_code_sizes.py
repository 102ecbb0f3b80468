"""Limits on files and functions, and no model names: the pass knows graphs, not models."""

from __future__ import annotations

import ast
import re
from pathlib import Path

ROOT = Path(__file__).parent.parent
SOURCES = sorted([*(ROOT / "deltapass").rglob("*.py"), *(ROOT / "backends").rglob("*.py")])

MAX_FILE_LINES = 320
MAX_ERROR_LINES = 640  # one list of small classes, which is one idea however long it grows
MAX_FUNCTION_LINES = 50
MODEL_NAMES = re.compile(
    r"\b(flux|pixart|sd3|wan|hunyuan|cogvideo\w*|sana|lumina\w*|ltx|mochi|qwen\w*)\b",
    re.IGNORECASE,
)

SOURCES_READ = {path.relative_to(ROOT): path.read_text() for path in SOURCES}


def test_files_are_short() -> None:
    long = [
        f"{path} has {lines} lines"
        for path, text in SOURCES_READ.items()
        if (lines := len(text.splitlines()))
        > (MAX_ERROR_LINES if path.name == "errors.py" else MAX_FILE_LINES)
    ]
    assert SOURCES_READ and not long


def test_functions_are_short() -> None:
    long = [
        f"{path}: {node.name} (line {node.lineno}): {length} lines"
        for path, text in SOURCES_READ.items()
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and node.end_lineno is not None
        and (length := node.end_lineno - node.lineno + 1) > MAX_FUNCTION_LINES
    ]
    assert not long


def test_no_model_is_named() -> None:
    found = [
        f"{path}, line {number}: {match.group()}"
        for path, text in SOURCES_READ.items()
        for number, line in enumerate(text.splitlines(), 1)
        for match in MODEL_NAMES.finditer(line)
    ]
    assert not found
