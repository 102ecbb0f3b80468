"""The demo's picture: drawn of real outcomes in test_compare; its words and its pixels here."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("matplotlib")
pytest.importorskip("diffusers")

from PIL import Image

from deltapass.demo.compare import DemoResult, DemoSettings, Outcome
from deltapass.demo.layout import MARGIN, Box, Layout, layout
from deltapass.demo.numbers import decibels
from deltapass.demo.picture import (
    LETTER,
    LINE,
    about,
    scale,
    steps_in_words,
    subtitle,
    words,
    write_picture,
)
from deltapass.explanation import Report
from deltapass.schedule.rules import Span


def outcome(name: str, images: torch.Tensor, **changes: Any) -> Outcome:
    fields = {
        "name": name, "steps": 2, "seconds_per_image": 0.05, "speedup": 2.0,
        "expected_speedup": 2.0, "gmacs_paper": 0.0, "gmacs_full": 0.0, "psnr": 30.0,
        "compile_seconds": None, "table": (None, Span(0, 2)), "images": images, **changes,
    }  # fmt: skip
    return Outcome(**fields)


def result(off: float = 0.1, channels: int = 1) -> DemoResult:
    images = torch.linspace(0, 0.8, 2 * channels * 64).view(2, channels, 8, 8)
    first = outcome("plain", images, psnr=None, speedup=1.0, table=(None, None))
    return DemoResult(
        outcomes=(first, outcome("ours", images + off, remark="as long as: theirs")),
        report=Report(steps=2), blocks=4, settings=DemoSettings(count=2, steps=2, options={}),
        threads=1, compiler_seconds=0.0, compile_cache="empty",
    )  # fmt: skip


@pytest.mark.parametrize(("psnr", "shown"), [(None, "-"), (float("inf"), "equal"), (31.26, "31.3")])
def test_decibels_read_well(psnr: float | None, shown: str) -> None:
    assert decibels(outcome("x", torch.zeros(1), psnr=psnr)) == shown


def test_words_of_a_method_and_of_the_reference() -> None:
    first, ours = result().outcomes
    assert words(first, first)[0] == "50 ms an image"
    lines = words(ours, first)
    assert lines[:2] == ("50 ms an image, 2.00x", "PSNR 30.0 dB")
    said = "pixels 10 % off on average, 10 % in the worst image as long as: theirs"
    assert " ".join(lines[2:]) == said


def test_steps_in_words() -> None:
    first, ours = result().outcomes
    assert steps_in_words(first) == "2 steps, all in full"
    assert steps_in_words(ours) == "1 steps in full, 1 partly predicted"


@pytest.mark.parametrize(("off", "most"), [(0.1, 0.1), (0.0, 0.01), (0.324, 0.33)])
def test_scale_of_differences_ends_at_a_round_number_beyond_them(off: float, most: float) -> None:
    assert scale(result(off)) == pytest.approx(most)


@pytest.mark.parametrize("channels", [1, 3])
def test_images_are_drawn_sharply_where_the_layout_says(channels: int, tmp_path: Path) -> None:
    shown = result(channels=channels)
    write_picture(shown, tmp_path / "demo.png")
    drawn = np.asarray(Image.open(tmp_path / "demo.png").convert("RGB"))
    placed = as_drawn(shown)
    assert drawn.shape == (placed.height, placed.width, 3)
    box = placed.bands[0].images[1]
    enlarged = (shown.outcomes[0].images[1] * 255).expand(3, 8, 8).permute(1, 2, 0).numpy()
    factor = box.width // 8
    wanted = np.kron(enlarged, np.ones((factor, factor, 1)))
    assert np.abs(cut(drawn, box) - wanted).max() <= 2


def test_strip_shows_what_ran_and_what_was_predicted(tmp_path: Path) -> None:
    write_picture(result(), tmp_path / "demo.png")
    drawn = np.asarray(Image.open(tmp_path / "demo.png").convert("RGB"))
    plain, ours = (cut(drawn, band.strip) for band in as_drawn(result()).bands)
    predicted, run = (0xF2, 0xB6, 0x61), (0x27, 0x47, 0x6E)
    assert (plain == predicted).all(-1).sum() == 0
    share = (ours == predicted).all(-1).sum() / (ours == run).all(-1).sum()
    assert share == pytest.approx(1 / 3, abs=0.03)  # half of the blocks of one step of two


@pytest.mark.parametrize("images", [1, 4, 10])
def test_the_line_below_the_title_is_never_wider_than_the_picture(images: int) -> None:
    lines = about(result(), layout(2, images, 8).width)
    assert max(map(len, lines)) * LETTER <= layout(2, images, 8).width - 2 * MARGIN
    assert " ".join(lines) == subtitle(result())


def as_drawn(shown: DemoResult) -> Layout:
    """Where its parts are, below as many lines as its title has."""
    lines = about(shown, layout(2, 2, 8).width)
    return layout(2, 2, 8, under_title=len(lines) * LINE)


def cut(drawn: np.ndarray, box: Box) -> np.ndarray:
    return drawn[box.top : box.top + box.height, box.left : box.left + box.width].astype(float)
