"""Where the parts of the demo's picture lie, in pixels from its top left corner."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, final

from deltapass.schedule.rules import Table

MOST_COLUMNS: Final = 10
ENLARGED: Final = 116  # pixels that an image is enlarged to, at least three quarters of it
MARGIN: Final = 28
LABELS: Final = 360  # width of the words at the left
GAP: Final = 10
TITLE: Final = 32
UNDER_TITLE: Final = 34
STRIP: Final = 40
BETWEEN: Final = 34  # from one method to the next
FOOTER: Final = 74


@final
@dataclass(frozen=True, slots=True)
class Box:
    """A rectangle: `left` and `top` in pixels from the top left corner."""

    left: int
    top: int
    width: int
    height: int


@final
@dataclass(frozen=True, slots=True)
class Band:
    """What is drawn of one method, from the top: its images, their differences, its steps.

    `differences` is empty for the reference, which differs from nothing.
    """

    label: Box
    images: tuple[Box, ...]
    differences: tuple[Box, ...]
    strip: Box


@final
@dataclass(frozen=True, slots=True)
class Layout:
    """The whole picture; the same for the same numbers."""

    width: int
    height: int
    title: Box
    bands: tuple[Band, ...]
    footer: Box


def layout(methods: int, images: int, side: int, under_title: int = UNDER_TITLE) -> Layout:
    """Place bands one below the other, the reference first.

    Args:
        methods: How many bands.
        images: How many there are of each method; those beyond MOST_COLUMNS are not shown.
        side: Pixels of an image, which are enlarged by a whole number and so stay sharp.
        under_title: Pixels of the lines below the title.
    """
    cell = side * max(1, round(ENLARGED / side))
    columns = min(images, MOST_COLUMNS)
    across = columns * (cell + GAP) - GAP
    left = MARGIN + LABELS
    heading = TITLE + under_title + GAP
    top = MARGIN + heading
    bands = []
    for place in range(methods):
        rows = 1 if place == 0 else 2
        cells = tuple(
            tuple(
                Box(left + column * (cell + GAP), top + row * (cell + GAP), cell, cell)
                for column in range(columns)
            )
            for row in range(rows)
        )
        strip = Box(left, top + rows * (cell + GAP), across, STRIP)
        height = strip.top + STRIP - top
        label = Box(MARGIN, top, LABELS - MARGIN, height)
        bands.append(Band(label, cells[0], cells[1] if rows > 1 else (), strip))
        top += height + BETWEEN
    width = left + across + MARGIN
    footer = Box(MARGIN, top, width - 2 * MARGIN, FOOTER)
    title = Box(MARGIN, MARGIN, width - 2 * MARGIN, heading)
    return Layout(width, top + FOOTER + MARGIN, title, tuple(bands), footer)


def skipped(table: Table, box: Box, blocks: int) -> tuple[tuple[Box, Box | None], ...]:
    """Every step of a schedule as a bar of its blocks, and the part of it that is not run.

    The first block is at the bottom. Bars share the box evenly, with a pixel between them.
    """
    steps = len(table)
    edges = [box.left + round(box.width * step / steps) for step in range(steps + 1)]
    bars: list[tuple[Box, Box | None]] = []
    for span, start, stop in zip(table, edges, edges[1:], strict=False):
        bar = Box(start, box.top, max(1, stop - start - 2), box.height)
        if span is None:
            bars.append((bar, None))
            continue
        top = box.top + round(box.height * (1 - span.stop / blocks))
        bottom = box.top + round(box.height * (1 - span.start / blocks))
        bars.append((bar, Box(bar.left, top, bar.width, bottom - top)))
    return tuple(bars)
