"""The demo's outcome in numbers: a table in the terminal, and JSON."""

from __future__ import annotations

import datetime
import json
import math
import platform
from importlib import metadata
from pathlib import Path
from typing import Any, Final

from rich.box import SIMPLE_HEAVY
from rich.table import Table as RichTable

from deltapass.demo.compare import DemoResult, Outcome, seeds
from deltapass.demo.images import error_in_words
from deltapass.demo.machine import processor
from deltapass.errors import counted
from deltapass.schedule.files import table_text

CAPTION: Final = (
    "GMACs: paper count / with attention. PSNR in dB against the plain images of the same seeds. "
    "compile: first call less a warm one; later rows reuse what earlier ones left in the cache "
    "({cache} before); the compiler's own start, {start:.1f} s, is apart. Threads: {threads}."
)


def outcome_table(result: DemoResult) -> RichTable:
    """One row a method."""
    images, rounds = result.settings.count, result.settings.rounds
    title = f"{counted(images, 'image')}, medians of {counted(rounds, 'round')}"
    table = RichTable(title=title, box=SIMPLE_HEAVY, collapse_padding=True, show_edge=False)
    table.caption = CAPTION.format(
        cache=result.compile_cache, start=result.compiler_seconds, threads=result.threads
    )
    table.add_column("method", no_wrap=True)
    for heading in ("ms/image", "speed-up", "expected", "GMACs/image", "PSNR", "compile"):
        table.add_column(heading, justify="right", no_wrap=True)
    for row in result.outcomes:
        table.add_row(
            row.name,
            f"{row.seconds_per_image * 1e3:.1f}",
            f"{row.speedup:.2f}x",
            f"{row.expected_speedup:.2f}x",
            f"{row.gmacs_paper:.2f} / {row.gmacs_full:.2f}",
            decibels(row),
            f"{row.compile_seconds:.1f} s" if row.compile_seconds is not None else "shared",
        )
    return table


def write_json(result: DemoResult, path: Path) -> None:
    """The numbers, as JSON that any reader takes: no infinities."""
    path.write_text(json.dumps(numbers(result), indent=2, allow_nan=False) + "\n")


def numbers(result: DemoResult) -> dict[str, Any]:
    """Numbers and what they depend on, without the images."""
    settings, report = result.settings, result.report
    return {
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        **{name: metadata.version(name) for name in ("deltapass", "torch", "diffusers")},
        "python": platform.python_version(),
        "hardware": f"{processor()}, {counted(result.threads, 'thread')}",
        "device": "cpu",
        "model": settings.model,
        "count": settings.count,
        "seeds": list(seeds(settings)),
        "steps": settings.steps,
        "guidance": settings.guidance,
        "rounds": settings.rounds,
        "lowering": settings.lowering,
        "options": {name: str(value) for name, value in settings.options.items()},
        "refusal": report.refusal,
        "buffer_bytes": report.buffer_bytes,
        "compile_cache": result.compile_cache,
        "compiler_seconds": result.compiler_seconds,
        "methods": [_row(outcome, result) for outcome in result.outcomes],
    }


def _row(outcome: Outcome, result: DemoResult) -> dict[str, Any]:
    """One method; `psnr` is null for the reference and for images equal to it."""
    without = ("images", "table")
    row = {name: getattr(outcome, name) for name in Outcome.__slots__ if name not in without}
    infinite = outcome.psnr is not None and math.isinf(outcome.psnr)
    return {
        **row,
        "psnr": None if infinite else outcome.psnr,
        "equal": infinite,
        "error": error_in_words(outcome.images, result.outcomes[0].images),
        "schedule": table_text(outcome.table, result.blocks),
    }


def decibels(row: Outcome) -> str:
    """How near to the plain images, as it is shown."""
    if row.psnr is None:
        return "-"
    return "equal" if math.isinf(row.psnr) else f"{row.psnr:.1f}"
