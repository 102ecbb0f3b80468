"""The picture of a session, read back from the figure."""

from __future__ import annotations

import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("matplotlib")

from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.image import imread

from deltapass.errors import MissingLibraryError
from deltapass.schedule.rules import Span
from deltapass.sessions.report import Cause, Entry, SessionReport
from deltapass.sessions.timeline import (
    COLOURS,
    FORCED,
    REFRESH,
    REFUSED,
    SPAN_COLOURS,
    draw,
    save_timeline,
)

DEEP, SHALLOW = Span(2, 8), Span(0, 6)


def entry(
    step: int | None, planned: Span | None = None, realised: Span | None = None, **given: Any
) -> Entry:
    return Entry(step=step, planned=planned, realised=realised, **given)


def run(steps: int, rows: int = 1, trajectories: int = 1) -> SessionReport:
    """Odd steps are to be cached; every fourth of these is forced to refresh."""
    entries = []
    for trajectory in range(trajectories):
        for step in range(steps):
            planned = (DEEP if step < steps / 2 else SHALLOW) if step % 2 else None
            forced = step % 8 == 7
            for row in range(rows):
                entries.append(
                    entry(
                        step, planned, None if forced else planned, branch=(f"row {row}", 0),
                        trajectory=trajectory, cause=Cause.WEIGHTS if forced else None,
                    )
                )  # fmt: skip
    return SessionReport((*entries,))


def cells(figure: Figure, colour: str) -> list[tuple[float, float, float]]:
    """Left end, right end and top of all cells of a colour, row by row."""
    found = []
    for bars in figure.axes[0].collections:
        if to_hex(bars.get_facecolor()[0]) == colour:
            for path in bars.get_paths():
                (left, top), (right, _) = path.vertices.min(axis=0), path.vertices.max(axis=0)
                found.append((float(left), float(right), float(top)))
    return found


def legend(figure: Figure) -> list[str]:
    return [text.get_text() for text in figure.legends[0].get_texts()]


def letters(figure: Figure) -> list[str]:
    (_, *marks) = figure.axes[0].texts  # the first is the second line of the title
    return [mark.get_text() for mark in marks]


def row_names(figure: Figure) -> list[str]:
    return [label.get_text() for label in figure.axes[0].get_yticklabels()]


# ---- cells ------------------------------------------------------------------------------------


def test_a_cell_has_the_colour_of_what_ran() -> None:
    figure = draw(
        SessionReport((
            entry(0),
            entry(1, DEEP, DEEP),
            entry(2, DEEP, cause=Cause.SHAPE),
            entry(3, SHALLOW, SHALLOW),
            entry(4, cause=Cause.REFUSED),
        ))
    )  # fmt: skip
    assert len(figure.legends[0].get_patches()) == 5
    colours = (COLOURS[REFRESH], SPAN_COLOURS[1], COLOURS[FORCED], SPAN_COLOURS[0])
    for step, colour in enumerate((*colours, COLOURS[REFUSED])):
        assert cells(figure, colour) == [(step, step + 1, 0)]
    assert legend(figure) == [
        "refresh (1)", "blocks 0..5 skipped (1)", "blocks 2..7 skipped (1)",
        "forced refresh (1)", "refused (1)", "shape changed (1)",
    ]  # fmt: skip


def test_calls_of_one_row_and_step_share_its_width() -> None:
    figure = draw(SessionReport((entry(0), entry(1, DEEP, DEEP), entry(1, DEEP))))
    assert cells(figure, SPAN_COLOURS[0]) == [(1, 1.5, 0)]
    assert cells(figure, COLOURS[FORCED]) == [(1.5, 2, 0)]


def test_calls_without_a_step_follow_the_ones_before() -> None:
    figure = draw(SessionReport((entry(3), *[entry(None, cause=Cause.REFUSED)] * 2)))
    assert cells(figure, COLOURS[REFUSED]) == [(4, 5, 0), (5, 6, 0)]
    assert figure.axes[0].get_xlabel() == "step"
    alone = draw(SessionReport((entry(None, cause=Cause.REFUSED),)))
    assert alone.axes[0].get_xlabel() == "call"


def test_picture_covers_the_steps_that_were_called() -> None:
    figure = draw(SessionReport((*(entry(step) for step in range(40, 50)),)))
    assert figure.axes[0].get_xlim() == (40, 50)
    shown = [label.get_text() for label in figure.axes[0].get_xticklabels()]
    assert shown == [str(step) for step in range(40, 50)]


def test_spans_keep_their_own_look_beyond_the_palette() -> None:
    spans = [Span(0, stop) for stop in range(1, 31)]
    report = SessionReport((*(entry(step, span, span) for step, span in enumerate(spans)),))
    figure = draw(report)
    patches = figure.legends[0].get_patches()
    assert len({(to_hex(p.get_facecolor()), p.get_hatch()) for p in patches}) == len(spans)
    figure.draw_without_rendering()  # the long legend has room of its own
    assert figure.axes[0].get_window_extent().height / figure.dpi > 0.5


# ---- rows and letters -------------------------------------------------------------------------


def test_rows_are_trajectories_and_branches() -> None:
    assert row_names(draw(run(4, rows=2))) == ["row 0", "row 1"]
    several = draw(run(4, rows=2, trajectories=2))
    assert row_names(several)[1:3] == ["trajectory 0, row 1", "trajectory 1, row 0"]
    tops = sorted({top for _, _, top in cells(several, COLOURS[REFRESH])})
    assert tops[2] - tops[1] > tops[1] - tops[0]


def test_a_trajectory_of_one_unnamed_branch_needs_no_branch_name() -> None:
    assert row_names(draw(SessionReport((entry(0), entry(0, trajectory=1))))) == [
        "trajectory 0",
        "trajectory 1",
    ]


def test_branches_of_one_trajectory_stay_together() -> None:
    calls = ((0, "a"), (1, "a"), (0, "b"))
    entries = (entry(0, trajectory=trajectory, branch=branch) for trajectory, branch in calls)
    assert row_names(draw(SessionReport((*entries,)))) == [
        "trajectory 0, a",
        "trajectory 0, b",
        "trajectory 1, a",
    ]


def test_row_names_are_cut_and_are_not_formulas() -> None:
    figure = draw(SessionReport((entry(0, branch="$x_$"), entry(0, branch="b" * 90))))
    figure.draw_without_rendering()
    plain, cut = row_names(figure)
    assert plain == "$x_$"
    assert len(cut) < 30
    assert cut.endswith("b...")


def test_causes_have_distinct_letters_even_all_of_them() -> None:
    report = SessionReport((*(entry(step, DEEP, cause=cause) for step, cause in enumerate(Cause)),))
    found = letters(draw(report))
    assert len(set(found)) == len(found) == len(Cause) - 1  # a refusal has a colour of its own
    assert found[:2] == ["N", "W"]


def test_narrow_cells_share_a_letter_and_letters_do_not_overlap() -> None:
    forced = [entry(step, DEEP, cause=Cause.SHAPE) for step in range(100, 200)]
    one = SessionReport((entry(0), *forced, entry(249)))
    assert letters(draw(one)) == ["S"]
    causes = (Cause.SHAPE, Cause.WEIGHTS)
    turns = [entry(step, DEEP, cause=causes[step % 2]) for step in range(250)]
    found = letters(draw(SessionReport((*turns,))))
    assert 40 < len(found) < 125
    assert letters(draw(SessionReport((*turns[::-1],)))) == found


# ---- the whole picture ------------------------------------------------------------------------


@pytest.mark.parametrize("trajectories", [1, 4])
@pytest.mark.parametrize("steps", [1, 4, 20, 250])
def test_picture_stays_readable(steps: int, trajectories: int) -> None:
    figure = draw(run(steps, rows=2, trajectories=trajectories))
    figure.draw_without_rendering()  # lays out; a text without room for it would warn
    width, height = figure.get_size_inches()
    assert 7 < width < 14
    assert 1.5 < height < 8
    axes = figure.axes[0].get_window_extent()
    assert axes.width / figure.dpi > 0.75 * width
    assert axes.height / figure.dpi > 0.3 * 2 * trajectories
    assert figure.axes[0].get_title(loc="left").strip() in str(run(steps, 2, trajectories))
    ticks = [label.get_window_extent() for label in figure.axes[0].get_xticklabels()]
    assert all(a.x1 < b.x0 for a, b in pairwise(ticks))
    assert figure.legends[0].get_window_extent().x1 <= figure.bbox.x1


def test_picture_of_no_calls_says_so() -> None:
    figure = draw(SessionReport(()))
    assert figure.get_suptitle() == "no calls"
    assert not figure.axes


@pytest.mark.parametrize(
    ("suffix", "start"), [("png", b"\x89PNG"), ("svg", b"<?xml"), ("pdf", b"%PDF")]
)
def test_suffix_says_the_format(tmp_path: Path, suffix: str, start: bytes) -> None:
    save_timeline(run(20, rows=2), tmp_path / f"timeline.{suffix}")
    assert (tmp_path / f"timeline.{suffix}").read_bytes().startswith(start)


def test_colours_reach_the_file(tmp_path: Path) -> None:
    save_timeline(run(20, rows=2), tmp_path / "timeline.png")
    pixels = imread(tmp_path / "timeline.png")[..., :3].reshape(-1, 3)
    found = {to_hex(rgb) for rgb in pixels[::50]}
    assert {COLOURS[REFRESH], COLOURS[FORCED], *SPAN_COLOURS[:2]} <= found


def test_unknown_suffix_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="'docx' is not supported"):
        save_timeline(run(4), tmp_path / "timeline.docx")


# ---- the library ------------------------------------------------------------------------------


def test_missing_library_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(MissingLibraryError, match=r"matplotlib .* 'deltapass\[demo\]'"):
        draw(run(4))


def test_picture_belongs_to_no_window() -> None:
    assert draw(run(4)).canvas.manager is None
