"""The picture of a session: one row a trajectory and branch, one cell a step, coloured by variant.

Letters name the causes; the legend says what they stand for and how often each thing happened.
"""

from __future__ import annotations

import math
import os
from collections import Counter
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from string import ascii_lowercase
from typing import TYPE_CHECKING, Any, Final, final

from deltapass.libraries import needs
from deltapass.schedule.rules import Span
from deltapass.sessions.report import Cause, Entry, SessionReport

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Variant = Span | str
REFRESH: Final = "refresh"
FORCED: Final = "forced refresh"
REFUSED: Final = "refused"

# After Okabe and Ito, https://jfly.uni-koeln.de/color: told apart in all colour blindnesses.
# Vermilion, the loudest of them, is kept for refreshes that nobody planned.
COLOURS: Final = {REFRESH: "#3d4f5f", FORCED: "#d55e00", REFUSED: "#b3b3b3"}
SPAN_COLOURS: Final = ("#8ecbef", "#f0dc5a", "#009e73", "#cc79a7", "#0072b2", "#e69f00")
HATCHES: Final = ("", "////", "....", "xxxx", "----", "||||")  # for more spans than colours
INK: Final = "#26323c"
EMPTY: Final = "#eff1f3"

# Inches; but BAR, GAP and the margins above and below are parts of a row.
NARROWEST, WIDEST, MARGIN = 7.5, 13.0, 1.2
CELL, ROW, GLYPH = 0.38, 0.46, 0.14
HEAD, LEGEND_LINE, LEGEND_COLUMN = 1.1, 0.21, 2.35
BAR, GAP, ABOVE, BELOW = 0.66, 0.4, 0.36, 0.12
LONGEST_LABEL: Final = 28  # letters
MOST_TICKS: Final = 32
DPI: Final = 150


@final
@dataclass(frozen=True, kw_only=True, slots=True)
class _Cell:
    """One call in the picture; several calls of one row and step share the step's width."""

    entry: Entry
    left: float
    right: float

    @property
    def variant(self) -> Variant:
        """What the colour says."""
        if self.entry.refused:
            return REFUSED
        return FORCED if self.entry.forced else self.entry.realised or REFRESH


_Rows = dict[tuple[int, Hashable], list[_Cell]]
_Style = Mapping[str, Any]


def draw(report: SessionReport) -> Figure:
    """Draw what every call of a session did.

    A call whose step is not known is drawn one step after the call before it in its row.

    Raises:
        MissingLibraryError: If matplotlib is not installed.
    """
    rows = _rows(report)
    cells = [cell for row in rows.values() for cell in row]
    if not cells:
        figure = _new_figure(NARROWEST, HEAD)
        figure.suptitle(report.summary, color=INK)
        return figure
    first, last = min(cell.left for cell in cells), max(cell.right for cell in cells)
    width = min(max(MARGIN + CELL * (last - first), NARROWEST), WIDEST)
    styles, letters = _styles(cells), _letters(report.causes)
    ncols = int(width / LEGEND_COLUMN)
    lines = math.ceil((len(styles) + len(letters)) / ncols)
    tops = _tops(rows)
    figure = _new_figure(width, HEAD + ROW * (tops[-1] + ABOVE + 1) + LEGEND_LINE * lines)
    axes = figure.subplots()
    _head(axes, report)
    _scales(axes, rows, (first, last))
    glyph = GLYPH / (width - MARGIN) * (last - first)
    for top, row in zip(tops, rows.values(), strict=True):
        axes.broken_barh([(first, last - first)], (top, BAR), color=EMPTY, linewidth=0)
        _bars(axes, top, row, styles)
        _marks(axes, top, row, letters, glyph)
    keys = _keys(cells, styles, letters)
    look: dict[str, Any] = {"frameon": False, "fontsize": 9, "labelcolor": INK}
    figure.legend([*keys.values()], [*keys], loc="outside lower left", ncols=ncols, **look)
    return figure


def save_timeline(report: SessionReport, path: str | os.PathLike[str]) -> None:
    """Write the picture of a session; the suffix of the path says which format.

    Args:
        report: Of the session: `session.report()`.
        path: Where to; .png, .svg, .pdf, or what else matplotlib knows.

    Raises:
        MissingLibraryError: If matplotlib is not installed.
        ValueError: If matplotlib does not know the suffix.
    """
    draw(report).savefig(path, dpi=DPI, bbox_inches="tight", facecolor="white")


# ---- what to draw -----------------------------------------------------------------------------


def _rows(report: SessionReport) -> _Rows:
    """Cells by trajectory and branch, in the order of their first calls."""
    places: dict[tuple[int, Hashable], dict[int, list[Entry]]] = {}
    for entry in report.entries:
        row = places.setdefault((entry.trajectory, entry.branch), {})
        step = next(reversed(row), -1) + 1 if entry.step is None else entry.step
        row.setdefault(step, []).append(entry)
    ordered = sorted(places.items(), key=lambda item: item[0][0])  # stable: branches stay put
    return {
        key: [
            _Cell(entry=entry, left=step + nth / len(shared), right=step + (nth + 1) / len(shared))
            for step, shared in sorted(row.items())
            for nth, entry in enumerate(shared)
        ]
        for key, row in ordered
    }


def _tops(rows: _Rows) -> list[float]:
    """Upper ends of the rows, downwards; a gap sets trajectories apart."""
    order = {trajectory: nth for nth, trajectory in enumerate(dict.fromkeys(t for t, _ in rows))}
    apart = GAP if len(rows) > len(order) else 0.0
    return [nth + apart * order[trajectory] for nth, (trajectory, _) in enumerate(rows)]


def _styles(cells: Iterable[_Cell]) -> dict[Variant, _Style]:
    """Colour and hatch of every variant there is, in the order of the legend."""
    found = {cell.variant for cell in cells}
    spans = sorted(variant for variant in found if isinstance(variant, Span))
    styles: dict[Variant, _Style] = {REFRESH: {"facecolor": COLOURS[REFRESH], "hatch": ""}}
    for nth, span in enumerate(spans):
        hatch = HATCHES[nth // len(SPAN_COLOURS) % len(HATCHES)]
        styles[span] = {"facecolor": SPAN_COLOURS[nth % len(SPAN_COLOURS)], "hatch": hatch}
    styles[FORCED] = {"facecolor": COLOURS[FORCED], "hatch": ""}
    styles[REFUSED] = {"facecolor": COLOURS[REFUSED], "hatch": "////"}
    return {variant: style for variant, style in styles.items() if variant in found}


def _letters(causes: Iterable[Cause]) -> dict[Cause, str]:
    """A capital for each cause, the first of its name that is left; refusals have a colour."""
    letters: dict[Cause, str] = {}
    for cause in causes:
        if cause is not Cause.REFUSED:
            wanted = f"{cause}{ascii_lowercase}".replace(" ", "").upper()
            letters[cause] = next(letter for letter in wanted if letter not in letters.values())
    return letters


# ---- drawing ----------------------------------------------------------------------------------


def _new_figure(width: float, height: float) -> Figure:
    """A figure that belongs to no window."""
    with needs("matplotlib", "demo"):
        from matplotlib.figure import Figure
    return Figure(figsize=(width, height), layout="constrained")


def _head(axes: Axes, report: SessionReport) -> None:
    extent, _, rest = report.summary.partition(": ")
    axes.set_title(f"{extent}\n", loc="left", fontsize=11, fontweight="bold", color=INK)
    place: dict[str, Any] = {"xycoords": "axes fraction", "textcoords": "offset points"}
    axes.annotate(rest, (0, 1), (0, 6), fontsize=9, color=INK, **place)


def _scales(axes: Axes, rows: _Rows, reach: tuple[float, float]) -> None:
    """Limits, the names of the rows, and the numbers of the steps."""
    from matplotlib.ticker import MaxNLocator

    tops, several = _tops(rows), len({trajectory for trajectory, _ in rows}) > 1
    axes.set_xlim(*reach)
    axes.set_ylim(tops[-1] + BAR + BELOW, -ABOVE)
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0, labelsize=9, labelcolor=INK)
    names = [_row_name(key, row[0].entry, several) for key, row in rows.items()]
    axes.set_yticks([top + BAR / 2 for top in tops], names, parse_math=False)
    steps = MaxNLocator(MOST_TICKS, integer=True, steps=[1, 2, 5, 10]).tick_values(*reach)
    shown = [int(step) for step in steps if reach[0] <= step < reach[1]]
    axes.set_xticks([step + 0.5 for step in shown], [str(step) for step in shown])
    known = any(cell.entry.step is not None for row in rows.values() for cell in row)
    axes.set_xlabel("step" if known else "call", fontsize=9, color=INK)


def _row_name(key: tuple[int, Hashable], entry: Entry, several: bool) -> str:
    label = entry.branch_label
    if len(label) > LONGEST_LABEL:
        label = f"{label[: LONGEST_LABEL - 3]}..."
    if not several:
        return label
    return f"trajectory {key[0]}" + ("" if label == "-" else f", {label}")


def _bars(axes: Axes, top: float, row: list[_Cell], styles: Mapping[Variant, _Style]) -> None:
    for variant, style in styles.items():
        cells = [cell for cell in row if cell.variant == variant]
        if cells:
            reaches = [(cell.left, cell.right - cell.left) for cell in cells]
            axes.broken_barh(reaches, (top, BAR), edgecolor="white", linewidth=0.4, **style)


def _marks(
    axes: Axes, top: float, row: list[_Cell], letters: Mapping[Cause, str], glyph: float
) -> None:
    """Write the causes: into cells where they fit, else above, else nowhere.

    `glyph` is the width of a letter in steps.
    """
    free = -math.inf  # where the last letter above the row ends
    for run in _runs(row, glyph):
        cause, left, right = run[0].entry.cause, run[0].left, run[-1].right
        middle = (left + right) / 2
        if cause is None or cause is Cause.REFUSED:
            continue
        if right - left >= glyph:
            colour = "white" if run[0].entry.realised is None else INK
            where: dict[str, Any] = {"y": top + BAR / 2, "va": "center_baseline", "color": colour}
        elif middle - glyph / 2 >= free:
            where = {"y": top - 0.03, "va": "bottom", "color": INK}
            free = middle + glyph / 2
        else:
            continue
        axes.text(middle, s=letters[cause], ha="center", fontsize=8, fontweight="bold", **where)


def _runs(row: list[_Cell], least: float) -> Iterator[list[_Cell]]:
    """Cells one by one where they are wide enough, else neighbours of one cause together."""
    for _, run in groupby(row, lambda cell: (cell.variant, cell.entry.cause)):
        cells = list(run)
        if cells[0].right - cells[0].left >= least:
            yield from ([cell] for cell in cells)
        else:
            yield cells


def _keys(
    cells: Sequence[_Cell], styles: Mapping[Variant, _Style], letters: Mapping[Cause, str]
) -> dict[str, Any]:
    """What stands for what: variants, then causes, each with its number of calls."""
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    variants = Counter(cell.variant for cell in cells)
    causes = Counter(cell.entry.cause for cell in cells)
    keys: dict[str, Any] = {}
    for variant, style in styles.items():
        name = f"{variant} skipped" if isinstance(variant, Span) else variant
        keys[f"{name} ({variants[variant]})"] = Patch(edgecolor="white", **style)
    letter_look: dict[str, Any] = {"color": INK, "linewidth": 0, "markeredgewidth": 0}
    for cause, letter in letters.items():
        marker = rf"$\mathbf{{{letter}}}$"
        keys[f"{cause} ({causes[cause]})"] = Line2D([], [], marker=marker, **letter_look)
    return keys
