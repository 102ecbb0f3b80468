"""Where things lie in the demo's picture."""

from __future__ import annotations

from itertools import pairwise

import pytest

from deltapass.demo.layout import GAP, MARGIN, MOST_COLUMNS, Box, layout, skipped
from deltapass.schedule.rules import Span


def right(box: Box) -> int:
    return box.left + box.width


def bottom(box: Box) -> int:
    return box.top + box.height


@pytest.mark.parametrize(("images", "side"), [(1, 28), (4, 32), (20, 28), (3, 200)])
def test_images_are_enlarged_by_whole_numbers_and_lie_apart(images: int, side: int) -> None:
    placed = layout(4, images, side)
    for band in placed.bands:
        cells = band.images + band.differences
        assert len(band.images) == min(images, MOST_COLUMNS)
        assert all(cell.width == cell.height and cell.width % side == 0 for cell in cells)
        for one, other in pairwise(band.images):
            assert other.left - right(one) == GAP
        assert right(band.images[-1]) == right(band.strip) == placed.width - MARGIN


def test_bands_lie_below_each_other_and_only_the_first_has_no_differences() -> None:
    placed = layout(3, 5, 28)
    assert [len(band.differences) for band in placed.bands] == [0, 5, 5]
    for band in placed.bands:
        rows = [band.images[0], *band.differences[:1], band.strip]
        assert all(bottom(one) < other.top for one, other in pairwise(rows))
        assert band.label.top == band.images[0].top
        assert bottom(band.label) == bottom(band.strip)
        assert right(band.label) <= band.images[0].left
    parts = [placed.title, *(band.label for band in placed.bands), placed.footer]
    assert all(bottom(one) <= other.top for one, other in pairwise(parts))
    assert bottom(placed.footer) + MARGIN == placed.height


def test_steps_share_the_strip_and_skipped_blocks_lie_where_they_are_in_the_stack() -> None:
    box = Box(100, 50, 400, 40)
    bars = skipped((None, Span(2, 8), Span(0, 4), Span(0, 8)), box, 8)
    assert [bar.left for bar, _ in bars] == [100, 200, 300, 400]
    assert all((bar.top, bar.height, bar.width) == (50, 40, 98) for bar, _ in bars)
    deep, shallow, whole = (span for _, span in bars[1:])
    assert bars[0][1] is None
    assert deep == Box(200, 50, 98, 30)  # the last six blocks, from the top
    assert shallow == Box(300, 70, 98, 20)  # the first four, down to the bottom
    assert whole == Box(400, 50, 98, 40)


def test_many_steps_end_where_the_strip_ends() -> None:
    bars = skipped((None,) * 7, Box(0, 0, 100, 10), 4)
    assert all(bar.width > 0 for bar, _ in bars)
    assert bars[-1][0].left + bars[-1][0].width == 98
