"""Which images: prompts and seeds, hashed, so that only equal ones are ever compared."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from deltapass.bench.files import digest
from deltapass.bench.record import Manifest
from deltapass.errors import BenchError


def manifest_of(seeds: Sequence[int], prompts: Sequence[Any]) -> Manifest:
    """The manifest of images, a prompt and a seed each."""
    content = {"seeds": [*seeds], "prompts": [*prompts]}
    return Manifest(sha256=digest(content), seeds=tuple(seeds), prompts=tuple(prompts))


def read_prompts(path: Path) -> tuple[Any, ...]:
    """Prompts of a file, one a line: words, or in a .jsonl file JSON with the arguments of a call.

    Empty lines count for nothing.

    Raises:
        BenchError: If it cannot be read, or holds none.
    """
    try:
        lines = [line for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
        made = [json.loads(line) for line in lines] if path.suffix == ".jsonl" else lines
    except OSError as error:
        raise BenchError(
            f"prompts {path}: {error.strerror or error}", "Give a text file, a prompt a line"
        ) from error
    except ValueError as error:
        raise BenchError(f"prompts {path}: {error}", "Write one JSON value a line") from error
    if not made:
        raise BenchError(f"prompts {path}: the file is empty", "Write one prompt a line")
    return tuple(made)
