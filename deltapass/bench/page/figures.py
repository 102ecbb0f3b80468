"""The page's figures as files: the Pareto of every measure, and the figures of records."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final

from deltapass.bench.page.advice import front, named, value
from deltapass.bench.page.shares import COSTS, by_cost, costs_of, plain_curves
from deltapass.bench.record import Figure, Interval, Measure, Record, Row
from deltapass.libraries import needs

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure as Drawn

INK, FAINT = "#1f2933", "#6b7785"
# Kind -> colour, marker. After Okabe and Ito; shapes differ as well.
STYLES: Final[Mapping[str, tuple[str, str]]] = MappingProxyType(
    {
        "plain": ("#1f2933", "o"),
        "steps": ("#5b6875", "o"),
        "cache": ("#0072b2", "D"),
        "rival": ("#b4500f", "s"),
    }
)
CURVES: Final = ("#0072b2", "#b4500f", "#00795c", "#a0417e", "#5b6875", "#7a6000")
DASHES: Final = ("-", "--", "-.", ":")
WIDTH, HEIGHT, DPI = 8.0, 5.0, 150
FORMATS: Final = ("svg", "png")


def write_figures(records: Sequence[Record], prefixes: Sequence[str], folder: Path) -> list[Path]:
    """Draw all figures of all records, each as SVG and PNG.

    Args:
        records: What was measured.
        prefixes: What the files of each record begin with.
        folder: Made where it is missing.

    Raises:
        MissingLibraryError: If matplotlib is not installed.
    """
    with needs("matplotlib", "bench"):
        from matplotlib import rc_context
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for record, prefix in zip(records, prefixes, strict=True):
        for name, drawn in _drawn(record):
            for ending in FORMATS:
                path = folder / f"{prefix}-{plain_name(name)}.{ending}"
                # No date and no random identifiers: equal records give equal files.
                metadata = {"Date": None} if ending == "svg" else {}
                with rc_context({"svg.hashsalt": name}):
                    drawn.savefig(path, dpi=DPI, metadata=metadata)
                written.append(path)
    return written


def plain_name(text: str) -> str:
    """A text as part of a file's name and of an anchor."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-") or "unnamed"


def draw_pareto(record: Record, cost: str, measure: Measure) -> Drawn:
    """Cost against quality: plain steps as a curve, the front, intervals both ways.

    Raises:
        MissingLibraryError: If matplotlib is not installed.
    """
    drawn, axes = _canvas()
    for number, names in enumerate(plain_curves(record)):
        plain = [
            (cut.mean, mean.mean * measure.scale)
            for row, cut in by_cost(record.rows, cost)
            if row.name in names and (mean := value(row, measure))
        ]
        if len(plain) > 1:
            x, y = zip(*plain, strict=True)
            label = None if number else "fewer plain steps"
            axes.plot(x, y, color=STYLES["steps"][0], linewidth=1.6, label=label)
    _draw_front(axes, record, cost, measure)
    for row, cut in by_cost(record.rows, cost):
        if mean := value(row, measure):
            _draw_point(axes, row, cut, mean, measure)
    axes.set_xlabel(f"{COSTS[cost]}, over that of the reference")
    better = "higher" if measure.higher else "lower"
    axes.set_ylabel(_literal(f"{measure.title} ({better} is better)"))
    title = _literal(f"{record.model.title}: {measure.title}")
    axes.set_title(title, loc="left", fontweight="bold")
    axes.margins(x=0.12, y=0.08)
    corner = (0.01, 0.98, "top") if measure.higher else (0.01, 0.02, "bottom")
    axes.text(
        *corner[:2], "best corner", transform=axes.transAxes, va=corner[2], color=FAINT, size=9
    )
    if axes.get_legend_handles_labels()[0]:  # a record may have no curve of plain steps
        axes.legend(frameon=False, fontsize=9)
    return drawn


def draw_figure(figure: Figure) -> Drawn:
    """Curves, or a map of numbers.

    Raises:
        MissingLibraryError: If matplotlib is not installed.
    """
    drawn, axes = _canvas()
    if figure.grid:
        cells = [[float("nan") if cell is None else cell for cell in line] for line in figure.grid]
        shown = axes.imshow(cells, aspect="auto", origin="lower", cmap="viridis")
        drawn.colorbar(shown, ax=axes)
        axes.grid(visible=False)
    for index, each in enumerate(figure.series):
        color = CURVES[index % len(CURVES)]
        style = DASHES[index // len(CURVES) % len(DASHES)]
        axes.plot(each.x, each.y, style, color=color, label=_literal(each.name), linewidth=1.6)
        if each.low and each.high:
            axes.fill_between(each.x, each.low, each.high, color=color, alpha=0.15, linewidth=0)
    axes.set_xlabel(_literal(figure.x_title))
    axes.set_ylabel(_literal(figure.y_title))
    axes.set_title(_literal(figure.title), loc="left", fontweight="bold")
    if len(figure.series) > 1:
        axes.legend(frameon=False, fontsize=9)
    return drawn


def _drawn(record: Record) -> Iterator[tuple[str, Drawn]]:
    cost = next(iter(costs_of(record)), None)
    for measure in record.measures if cost else ():
        if sum(value(row, measure) is not None for row, _ in by_cost(record.rows, cost or "")) > 1:
            yield f"pareto-{measure.name}", draw_pareto(record, cost or "", measure)
    for figure in record.figures:
        yield f"figure-{figure.name}", draw_figure(figure)


def _canvas() -> tuple[Drawn, Axes]:
    with needs("matplotlib", "bench"):
        from matplotlib.figure import Figure as Canvas
    drawn = Canvas(figsize=(WIDTH, HEIGHT), layout="constrained")
    axes = drawn.add_subplot()
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(color="#e4e8ec", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(colors=INK)
    return drawn, axes


def _draw_front(axes: Axes, record: Record, cost: str, measure: Measure) -> None:
    rows = [named(record.rows, name) for name in front(record, cost, measure)]
    found = {row.name: cut.mean for row, cut in by_cost(record.rows, cost)}
    points = [
        (found[row.name], row.means[measure.name].mean * measure.scale) for row in rows if row
    ]
    if len(points) > 1:
        x, y = zip(*points, strict=True)
        style: dict[str, Any] = {"drawstyle": "steps-post", "linestyle": ":", "linewidth": 1.2}
        axes.plot(x, y, color=INK, label="best at its time", **style)


def _draw_point(axes: Axes, row: Row, cut: Interval, mean: Interval, measure: Measure) -> None:
    color, marker = STYLES[row.kind]
    x, y = cut.mean, mean.mean * measure.scale
    ends = sorted((mean.low * measure.scale, mean.high * measure.scale))
    axes.errorbar(
        x, y,
        xerr=[[max(0.0, x - cut.low)], [max(0.0, cut.high - x)]],
        yerr=[[max(0.0, y - ends[0])], [max(0.0, ends[1] - y)]],
        fmt=marker, color=color, markersize=6, elinewidth=1, capsize=2,
    )  # fmt: skip
    axes.annotate(
        _literal(row.label), (x, y), xytext=(6, 5), textcoords="offset points", size=8, color=INK
    )


def _literal(text: str) -> str:
    """A text in which matplotlib looks for no mathematics."""
    return text.replace("$", r"\$")
