"""The MACs and speed-up columns of the paper's tables, as printed and as counted here."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, Final, final

import msgspec

from deltapass.bench.macs import trajectories
from deltapass.bench.macs.architectures import architecture, counts_file
from deltapass.bench.paper import paper_table
from deltapass.graph.program import Macs
from deltapass.schedule.rules import Schedule

TERA: Final = 1e12
NEAR: Final = 1e-3  # how far counted and printed may be apart, as a share of the printed figure


@final
class MacsRow(msgspec.Struct, frozen=True, kw_only=True):
    """One row of one table of the paper.

    Attributes:
        table: Key of the paper's table.
        number: "Table 1", as printed.
        method: Its words.
        architecture: What was built to count it.
        printed: MACs as the paper prints them, in units of 10^12.
        paper: Counted here by the paper's convention: linear and convolution layers alone.
        full: Counted with the products of attention.
        printed_speedup: As the paper prints it; None where its table has no such column.
        speedup: Of MACs, by the paper's convention.
        full_speedup: Of MACs with the products of attention.
        note: Why a figure is not met, where one is not.
    """

    table: str
    number: str
    method: str
    architecture: str
    printed: float
    paper: float
    full: float
    printed_speedup: float | None
    speedup: float
    full_speedup: float
    note: str = ""

    @property
    def off(self) -> float:
        """Counted over printed MACs, less one."""
        return self.paper / self.printed - 1

    @property
    def met(self) -> bool:
        """Whether the MACs are those printed, within NEAR."""
        return abs(self.off) <= NEAR

    @property
    def speedup_met(self) -> bool:
        """Whether the speed-up is the one printed, within NEAR and the rounding of two digits."""
        printed = self.printed_speedup
        return printed is None or abs(self.speedup - printed) <= 0.005 + NEAR * printed


def macs_table() -> tuple[MacsRow, ...]:
    """All rows of the paper that have MACs and can be counted: seconds, and no weights.

    Raises:
        MissingLibraryError: If diffusers is not installed.
    """
    return tuple(row for name in counts_file()["tables"] for row in _rows(name))


def _rows(name: str) -> list[MacsRow]:
    runs, printed = counts_file()["tables"][name], paper_table(name)
    built, batch, steps = runs["architecture"], runs["batch"], runs["steps"]
    plain = trajectories.plain(built, batch, steps)
    columns = printed["columns"]
    found = []
    for method, values in zip(runs["methods"], printed["rows"], strict=True):
        said = dict(zip(columns, values, strict=True))
        counted = _macs(method, built, batch, steps)
        found.append(
            MacsRow(
                table=name,
                number=printed["title"],
                method=said["method"] if "method" in said else _searched(said),
                architecture=architecture(built).title,
                printed=said["macs_T"],
                paper=counted.paper / TERA,
                full=counted.full / TERA,
                printed_speedup=said.get("speedup"),
                speedup=plain.paper / counted.paper,
                full_speedup=plain.full / counted.full,
                note=method.get("note", ""),
            )
        )
    return found


def _searched(said: Mapping[str, Any]) -> str:
    return f"Nc={said['nc']} b={said['b'] or '-'}"


def _macs(method: Mapping[str, Any], built: str, batch: int, steps: int) -> Macs:
    """What one row runs; the only key besides `note` says how."""
    (kind,) = set(method) - {"note"}
    return KINDS[kind](method[kind], built, batch, steps)


def _cache(rule: Mapping[str, Any], built: str, batch: int, steps: int) -> Macs:
    return trajectories.cached(built, batch, steps, Schedule(**rule))


KINDS: Final[Mapping[str, Callable[[Any, str, int, int], Macs]]] = MappingProxyType(
    {
        "plain": lambda own, built, batch, _: trajectories.plain(built, batch, own),
        "cache": _cache,
        "gate": lambda full, built, batch, steps: trajectories.gated(built, batch, steps, full),
        "places": lambda every, built, batch, steps: trajectories.between(
            built, batch, steps, every
        ),
    }
)


def macs_said(rows: Sequence[MacsRow]) -> str:
    """How many figures are met, and what was counted."""
    met = sum(row.met for row in rows)
    off = max((abs(row.off) for row in rows if row.met), default=0.0)
    return (
        f"{met} of {len(rows)} figures are met within {100 * NEAR:g} % (the farthest by "
        f"{off:.2%}), counted on the real architectures without weights: linear and convolution "
        "layers, both halves of guidance, no attention products. Those with attention stand beside."
    )


TITLES: Final = (
    "table",
    "method",
    "paper's MACs, T",
    "counted, T",
    "off, %",
    "with attention, T",
    "paper's speed-up",
    "counted",
    "with attention",
    "why it is off",
)


def macs_cells(row: MacsRow) -> list[str]:
    """A row under TITLES."""
    printed = "" if row.printed_speedup is None else f"{row.printed_speedup:.2f}x"
    return [
        row.number,
        row.method,
        f"{row.printed:g}",
        f"{row.paper:.3f}",
        f"{100 * row.off:+.3f}",
        f"{row.full:.3f}",
        printed,
        f"{row.speedup:.3f}x",
        f"{row.full_speedup:.3f}x",
        row.note,
    ]
