"""The work of `deltapass bench macs`: the paper's MACs counted again, or those of any model."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import msgspec
from rich.console import Console
from rich.table import Table
from torch import nn

from deltapass.bench.environment import Environment
from deltapass.bench.macs import parts
from deltapass.bench.macs.parts import CallMacs, cells_of, macs_of_call
from deltapass.bench.macs.table import TITLES, MacsRow, macs_cells, macs_said, macs_table
from deltapass.bench.reporting.tables import macs_markdown, table
from deltapass.bench.subjects import EMBEDDED, Dealt, embedded_subject, pipeline_subject
from deltapass.cli.command_line import say_written
from deltapass.cli.loops import GUIDANCE, trajectories
from deltapass.cli.models import check_source
from deltapass.cli.outputs import whole_file
from deltapass.errors import BenchError
from deltapass.pipelines.first_call import Call, first_call

NAME: Final = "macs"


def show_macs(models: Sequence[str], call: Mapping[str, Any], output: Path | None) -> None:
    """Print the paper's table, or one of every model; with a folder, write them there too.

    Raises:
        BenchError: If a model takes no such call.
        ModelSourceError: If a model cannot be loaded.
        OutputError: If a file cannot be written.
        PipelineCallError: If a pipeline refuses the call.
    """
    for source in models:
        _show_model(source, macs_of_call(*_call_of(source, call)), output)
    if not models:
        _show_paper(macs_table(), output)


def _call_of(source: str, call: Mapping[str, Any]) -> Call:
    """A denoiser and one call of it, for one image where a pipeline makes it."""
    if source in EMBEDDED:
        if call:
            raise BenchError(f"{source} has prompts of its own", "Leave out --call for it")
        subject = embedded_subject(source, Environment(), GUIDANCE)
        return first_call(subject.pipeline, subject.call((0,)))
    check_source(source)
    made, given = trajectories(source, call)
    if isinstance(made, tuple) and len(made) == 3 and isinstance(made[0], nn.Module):
        return made[0].eval(), tuple(made[1]), dict(made[2])
    subject = pipeline_subject(source, (made, given), Environment(), Dealt())
    return first_call(subject.pipeline, subject.call((0,)))


# ---- shown ---------------------------------------------------------------------------------------


def _show_paper(rows: Sequence[MacsRow], output: Path | None) -> None:
    shown = Table(*TITLES[:-1], box=None, pad_edge=False)
    for row in rows:
        shown.add_row(*macs_cells(row)[:-1])
    notes = (f"{row.number}, {row.method}: {row.note}" for row in rows if row.note)
    console = Console()
    console.print(shown, "", macs_said(rows), *notes, sep="\n", markup=False, highlight=False)
    if output is not None:
        names = MacsRow.__struct_fields__
        lines = (list(msgspec.to_builtins(row).values()) for row in rows)
        _write(output / NAME, f"{macs_markdown(rows)}\n", names, lines)


def _show_model(source: str, call: CallMacs, output: Path | None) -> None:
    said = f"One call of {source}, {call.samples} in the batch"
    said = f"{said}; {call.remark}" if call.remark else said
    shown = Table(*parts.TITLES, box=None, pad_edge=False)
    for column in shown.columns[1:]:
        column.justify = "right"
    for cells in cells_of(call):
        shown.add_row(*cells)
    Console().print(f"{said}.", shown, "", sep="\n", markup=False, highlight=False)
    if output is not None:
        name = f"{NAME}-{re.sub(r'[^A-Za-z0-9._-]+', '-', source).strip('-.')}"
        text = f"{said}.\n\n{table(parts.TITLES, cells_of(call))}\n"
        _write(output / name, text, ("module", "macs_paper", "macs_full"), _modules(call))


def _modules(call: CallMacs) -> Iterator[tuple[str, float, float]]:
    for path, macs in call.counted.by_path.items():
        yield path, macs.paper, macs.full


def _write(stem: Path, markdown: str, names: Sequence[str], lines: Iterable[Sequence[Any]]) -> None:
    """Beside each other: the table for people, and all numbers in raw units."""
    page, numbers = (stem.with_name(f"{stem.name}{ending}") for ending in (".md", ".csv"))
    with whole_file(page) as aside:
        aside.write_text(markdown, encoding="utf-8")
    with whole_file(numbers) as aside, aside.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([names, *lines])
    say_written("table", page)
    say_written("numbers", numbers)
