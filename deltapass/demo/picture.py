"""The demo's picture: every method's images, how far they are off, and what each step ran."""

from __future__ import annotations

import math
import textwrap
from pathlib import Path
from typing import Any, Final

import torch

from deltapass.demo.compare import DemoResult, Outcome
from deltapass.demo.images import error_in_words, error_maps, pixels
from deltapass.demo.layout import MARGIN, Band, Box, Layout, layout, skipped
from deltapass.demo.numbers import decibels
from deltapass.errors import counted
from deltapass.libraries import needs

with needs("matplotlib", "demo"):
    from matplotlib.figure import Figure
    from matplotlib.patches import Rectangle

DPI: Final = 100
RUN, PREDICTED = "#27476e", "#f2b661"
TEXT, FAINT = "#1c1c1c", "#6a6a6a"
MAP: Final = "magma"
WORDS: Final = 44  # letters of a line at the left
NAME_SIZE, TEXT_SIZE, SMALL_SIZE = 15, 10.5, 9.5
LETTER: Final = 8  # pixels of a letter of the text, about
LINE: Final = 17  # pixels from one line of text to the next


def write_picture(result: DemoResult, path: Path) -> None:
    """Draw all methods, one band each, on the same seeds and on one scale of differences."""
    reference = result.outcomes[0]
    count, side = len(reference.images), reference.images.shape[-1]
    placed = layout(len(result.outcomes), count, side)
    lines = about(result, placed.width)
    placed = layout(len(result.outcomes), count, side, under_title=len(lines) * LINE)
    figure = Figure(figsize=(placed.width / DPI, placed.height / DPI), dpi=DPI, facecolor="white")
    canvas = Canvas(figure, placed)
    canvas.text(placed.title, 0, title(result), NAME_SIZE + 3, weight="bold")
    for number, line in enumerate(lines):
        canvas.text(placed.title, 32 + number * LINE, line, TEXT_SIZE, color=FAINT)
    most = scale(result)
    for outcome, band in zip(result.outcomes, placed.bands, strict=True):
        _draw_words(canvas, outcome, reference, band)
        shown = len(band.images)
        for image, box in zip(outcome.images[:shown], band.images, strict=True):
            canvas.image(box, pixels(image), cmap="gray", vmax=1)
        if band.differences:
            maps = error_maps(outcome.images[:shown], reference.images[:shown])
            for errors, box in zip(maps, band.differences, strict=True):
                canvas.image(box, errors, cmap=MAP, vmax=most)
        _draw_steps(canvas, outcome, band.strip, result.blocks)
    _draw_legend(canvas, placed.footer, most)
    figure.savefig(path, dpi=DPI)


def title(result: DemoResult) -> str:
    """What is compared."""
    settings = result.settings
    return f"The same {counted(settings.count, 'seed')}, sampled in {len(result.outcomes)} ways"


def about(result: DemoResult, width: int) -> list[str]:
    """The subtitle in lines that a picture of that width holds."""
    return textwrap.wrap(subtitle(result), (width - 2 * MARGIN) // LETTER)


def subtitle(result: DemoResult) -> str:
    """How it was measured."""
    settings = result.settings
    return (
        f"{counted(settings.steps, 'step')} of DPM-Solver++ with guidance {settings.guidance:g}; "
        f"{result.blocks} blocks; times are medians of {counted(settings.rounds, 'round')} "
        f"on {counted(result.threads, 'thread')} of a CPU, lowering {settings.lowering}"
    )


def scale(result: DemoResult) -> float:
    """Where the scale of differences ends: the same for all, and few pixels beyond it."""
    wanted = result.outcomes[0].images
    maps = (error_maps(each.images, wanted) for each in result.outcomes[1:])
    most = [float(errors.flatten().quantile(0.995)) for errors in maps]
    return max(1, math.ceil(round(max(most, default=0.0) * 100, 3))) / 100


def words(outcome: Outcome, reference: Outcome) -> tuple[str, ...]:
    """What is said of a method beside its images, line by line."""
    time = f"{outcome.seconds_per_image * 1e3:.0f} ms an image"
    if outcome is reference:
        return (time, "what the others are held against")
    error = textwrap.wrap(error_in_words(outcome.images, reference.images), WORDS)
    remark = textwrap.wrap(outcome.remark, WORDS)
    return (f"{time}, {outcome.speedup:.2f}x", f"PSNR {decibels(outcome)} dB", *error, *remark)


def steps_in_words(outcome: Outcome) -> str:
    """How many steps ran whole."""
    cached = sum(row is not None for row in outcome.table)
    if not cached:
        return f"{counted(outcome.steps, 'step')}, all in full"
    return f"{outcome.steps - cached} steps in full, {cached} partly predicted"


# ---- drawing -------------------------------------------------------------------------------------


class Canvas:
    """Draws at pixels from the top left corner of a figure."""

    def __init__(self, figure: Any, placed: Layout) -> None:
        self._figure, self._placed = figure, placed

    def text(self, box: Box, down: int, what: str, size: float, **style: Any) -> None:
        """A line of text, whose top is `down` pixels below the box's."""
        x, y = box.left / self._placed.width, 1 - (box.top + down) / self._placed.height
        self._figure.text(x, y, what, size=size, va="top", ha="left", **{"color": TEXT, **style})

    def image(self, box: Box, values: torch.Tensor, **style: Any) -> None:
        """Pixels enlarged to the box, sharply."""
        axes = self._figure.add_axes(self._place(box))
        axes.imshow(values.numpy(), interpolation="nearest", aspect="auto", vmin=0, **style)
        axes.set_axis_off()

    def fill(self, box: Box, color: str) -> None:
        """A rectangle of one colour."""
        left, bottom, width, height = self._place(box)
        patch = Rectangle(
            (left, bottom), width, height, facecolor=color, edgecolor="none",
            transform=self._figure.transFigure,
        )  # fmt: skip
        self._figure.add_artist(patch)

    def _place(self, box: Box) -> tuple[float, float, float, float]:
        width, height = self._placed.width, self._placed.height
        bottom = height - box.top - box.height
        return box.left / width, bottom / height, box.width / width, box.height / height


def _draw_words(canvas: Canvas, outcome: Outcome, reference: Outcome, band: Band) -> None:
    canvas.text(band.label, 0, outcome.name, NAME_SIZE, weight="bold")
    for number, line in enumerate(words(outcome, reference)):
        canvas.text(band.label, 30 + number * LINE, line, TEXT_SIZE)
    if band.differences:
        beside = Box(band.label.left, band.differences[0].top, band.label.width, LINE)
        canvas.text(beside, 44, "difference from the plain images", SMALL_SIZE, color=FAINT)
    beside = Box(band.label.left, band.strip.top, band.label.width, LINE)
    canvas.text(beside, 4, steps_in_words(outcome), SMALL_SIZE, color=FAINT)
    canvas.text(beside, 20, "from noise (left) to the image", SMALL_SIZE, color=FAINT)


def _draw_steps(canvas: Canvas, outcome: Outcome, box: Box, blocks: int) -> None:
    for bar, span in skipped(outcome.table, box, blocks):
        canvas.fill(bar, RUN)
        if span is not None:
            canvas.fill(span, PREDICTED)


def _draw_legend(canvas: Canvas, box: Box, most: float) -> None:
    """What the colours of the strips and of the differences mean."""
    places = (
        (RUN, 0, "blocks that are run; a bar is a step, its first block at the bottom"),
        (PREDICTED, 26, "blocks that are skipped: what they would add is predicted"),
    )
    for color, down, what in places:
        canvas.fill(Box(box.left, box.top + down, 26, 15), color)
        canvas.text(Box(box.left + 36, box.top + down, 0, 0), 1, what, TEXT_SIZE)
    wide = min(220, box.width // 3)
    left = box.left + box.width - wide
    ramp = Box(left, box.top, wide, 15)
    canvas.image(ramp, torch.linspace(0, 1, 256)[None], cmap=MAP, vmax=1)
    canvas.text(Box(left, box.top + 20, 0, 0), 0, "0", SMALL_SIZE)
    end = f"{most:.0%} of the range, or more"
    canvas.text(Box(left + 20, box.top + 20, 0, 0), 0, f"to {end}", SMALL_SIZE)
    canvas.text(Box(left, box.top + 38, 0, 0), 0, "difference of a pixel", SMALL_SIZE, color=FAINT)
