"""The demo's outcome for people: a table in the terminal, a picture, and the numbers as JSON."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Final

import matplotlib as mpl
import torch
from matplotlib.figure import Figure
from rich.box import SIMPLE_HEAVY
from rich.table import Table as RichTable

from deltapass.demo import DemoResult, Outcome

COLUMNS: Final = 5
CAPTION: Final = (
    "GMACs: paper count / with attention. PSNR in dB against the plain images of the same seeds. "
    "compile: first call less a warm one; later rows reuse what earlier ones left in the cache."
)


def outcome_table(result: DemoResult) -> RichTable:
    """One row a method."""
    title = f"{result.settings.count} images, medians of {result.settings.rounds} rounds"
    table = RichTable(title=title, box=SIMPLE_HEAVY, padding=(0, 1), caption=CAPTION)
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
            _decibels(row),
            f"{row.compile_seconds:.1f} s" if row.compile_seconds is not None else "shared",
        )
    return table


def write_json(result: DemoResult, path: Path) -> None:
    """The numbers; infinite PSNR becomes null."""
    numbers = result.as_dict()
    for row in numbers["methods"]:
        if row["psnr"] is not None and math.isinf(row["psnr"]):
            row["psnr"] = None
    path.write_text(json.dumps(numbers, indent=2) + "\n")


def write_picture(result: DemoResult, path: Path) -> None:
    """Every method's images of the same seeds, side by side."""
    mpl.use("Agg")
    figure = Figure(figsize=(3.1 * len(result.outcomes), 4.2), layout="constrained")
    panels = figure.subplots(1, len(result.outcomes))
    for axes, row in zip(panels, result.outcomes, strict=True):
        axes.imshow(grid(row.images), cmap="gray", vmin=0, vmax=1, interpolation="nearest")
        psnr = f"\nPSNR {_decibels(row)} dB" if row.psnr is not None else "\n(the reference)"
        axes.set_title(f"{row.name}\n{row.speedup:.2f}x{psnr}", fontsize=10)
        axes.set_axis_off()
    figure.savefig(path, dpi=110)


def grid(images: torch.Tensor, columns: int = COLUMNS) -> torch.Tensor:
    """Images (B, 1, H, W) as one picture of `columns` columns; missing ones are black."""
    count, _, height, width = images.shape
    rows = math.ceil(count / columns)
    padded = torch.zeros(rows * columns, height, width)
    padded[:count] = images[:, 0]
    cells = padded.view(rows, columns, height, width)
    return cells.permute(0, 2, 1, 3).reshape(rows * height, columns * width)


def _decibels(row: Outcome) -> str:
    if row.psnr is None:
        return "-"
    return "equal" if math.isinf(row.psnr) else f"{row.psnr:.1f}"
