"""The picture of a search: cost against quality, what was found beside fewer plain steps."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final, Literal

from deltapass.libraries import needs
from deltapass.tuning.search.tuned import FOUND, LEVEL, LINEAR, PAPER, PLAIN_STEPS, Measured, Tuned

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# After Okabe and Ito, as in the timeline; vermilion is kept for what was found.
STYLES: Final = {
    PLAIN_STEPS: ("plain steps", "#26323c", "o"),
    PAPER: ("paper's schedule", "#0072b2", "s"),
    LINEAR: ("paper's schedule, linear", "#009e73", "D"),
    FOUND: ("found", "#d55e00", "o"),
}
TRIED: Final = "#b9c3cc"
INK: Final = "#26323c"
WIDTH, HEIGHT, DPI = 8.0, 5.0, 150
ROOM: Final = 0.06  # of the height of the values, around them


def save_pareto(tuned: Tuned, path: str | os.PathLike[str]) -> None:
    """Draw cost against quality, as .png, .svg or .pdf.

    Plain steps are a curve: what lies above it is worth more than fewer steps. Everything but the
    candidates is measured on held-out seeds, with its interval; where there are none, what was
    found is drawn as the search saw it.

    Raises:
        MissingLibraryError: If matplotlib is not installed.
        ValueError: If the path ends in a format that matplotlib does not write.
    """
    with needs("matplotlib", "tune"):
        from matplotlib.figure import Figure
    figure = Figure(figsize=(WIDTH, HEIGHT), layout="constrained")
    axes = figure.add_subplot()
    _draw_tried(axes, tuned)
    for kind in STYLES:
        _draw_kind(axes, tuned, [each for each in tuned.measured if each.kind == kind])
    if not tuned.measured:
        _draw_searched(axes, tuned)
    _finish(axes, tuned)
    figure.savefig(path, dpi=DPI)


def _draw_tried(axes: Axes, tuned: Tuned) -> None:
    if tuned.trials:
        costs, values = zip(*tuned.trials, strict=True)
        label = f"{len(costs)} candidates, on the seeds of the search"
        axes.scatter(costs, values, s=9, color=TRIED, linewidths=0, label=label, zorder=1)


def _draw_kind(axes: Axes, tuned: Tuned, some: Sequence[Measured]) -> None:
    """The methods of one kind with their intervals; plain ones joined by a line."""
    if not some:
        return
    name, colour, marker = STYLES[some[0].kind]
    some = sorted(some, key=lambda each: each.cost)
    costs, means = [each.cost for each in some], [each.mean for each in some]
    below = [each.mean - each.interval[0] for each in some]
    above = [each.interval[1] - each.mean for each in some]
    found = some[0].kind == FOUND
    axes.errorbar(
        costs,
        means,
        yerr=(below, above),
        fmt=marker,
        linestyle="-" if some[0].kind == PLAIN_STEPS else "none",
        color=colour,
        markersize=8 if found else 5,
        linewidth=1.2,
        capsize=2.5,
        label=name,
        zorder=3 if found else 2,
    )
    for each in some:
        text = {PLAIN_STEPS: str(each.steps), FOUND: f"{1 / each.cost:.2f}x"}.get(each.kind)
        if text is not None:
            _name_point(axes, tuned, each, text, colour)


def _name_point(axes: Axes, tuned: Tuned, each: Measured, text: str, colour: str) -> None:
    """What was found is named on the better side, plain steps on the other."""
    better = 1 if tuned.metric.more_is_better else -1
    side = better if each.kind == FOUND else -better
    axes.annotate(
        text,
        (each.cost, each.mean),
        xytext=(-7 * side, 7 * side),
        textcoords="offset points",
        ha="right" if side > 0 else "left",
        va="bottom" if side > 0 else "top",
        color=colour,
        fontsize=8.5,
        weight="bold" if each.kind == FOUND else "normal",
    )


def _draw_searched(axes: Axes, tuned: Tuned) -> None:
    name, colour, marker = STYLES[FOUND]
    costs, values = [each.cost for each in tuned.found], [each.value for each in tuned.found]
    label = f"{name}, on the seeds of the search"
    axes.scatter(costs, values, s=60, color=colour, marker=marker, label=label, zorder=3)


def _finish(axes: Axes, tuned: Tuned) -> None:
    unit = "MACs" if tuned.costs.in_macs else "time"
    metric = f"{tuned.metric.name}, {tuned.metric.unit}" if tuned.metric.unit else tuned.metric.name
    axes.set_xlabel(f"share of the plain trajectory's {unit}", color=INK)
    axes.set_ylabel(f"{metric} to the plain samples", color=INK)
    axes.set_title(_title(tuned), color=INK, fontsize=11, loc="left")
    axes.set_ylim(*_range([*_shown(tuned)], more_is_better=tuned.metric.more_is_better))
    axes.set_xlim(0.0, None)
    axes.grid(color="#e3e7ea", linewidth=0.8)
    axes.set_axisbelow(True)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    corner: Literal["lower right", "upper right"]
    corner = "lower right" if tuned.metric.more_is_better else "upper right"
    axes.legend(loc=corner, frameon=False, fontsize=8.5)


def _title(tuned: Tuned) -> str:
    counts = {len(each.values) for each in tuned.measured}
    if not counts:
        return "Cost against quality, before anything was measured on held-out seeds"
    return f"Cost against quality: {max(counts)} held-out samples, {LEVEL} % intervals"


def _shown(tuned: Tuned) -> Sequence[float]:
    """The values that the picture must hold; candidates may lie outside."""
    measured = [end for each in tuned.measured for end in each.interval]
    return measured or [each.value for each in tuned.found] or [v for _, v in tuned.trials]


def _range(values: Sequence[float], *, more_is_better: bool) -> tuple[float, float]:
    if not values:
        return 0.0, 1.0
    low, high = min(values), max(values)
    room = ROOM * ((high - low) or abs(high) or 1.0)
    return (low - room, high + room) if more_is_better else (max(0.0, low - room), high + room)
