"""bench/figures.py: figures of a record's rows, and of the model's own deltas."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("diffusers")

from tiny_bench import BLOCKS, STEPS, tiny_job

from deltapass.bench.running import stages
from deltapass.bench.running.concluding import conclude
from deltapass.bench.running.figures import check_figures
from deltapass.bench.suite import MethodSpec
from deltapass.errors import BenchError

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation")


def test_figures_are_those_that_the_suite_asks_for(tmp_path: Path) -> None:
    sweep = [
        MethodSpec(name="delta-dit", settings={"boundary": b, "cached_blocks": 2})
        for b in (1.0, 0.0)
    ]
    job = tiny_job(
        tmp_path,
        methods=(MethodSpec(name="plain"), *sweep),
        figures=("cosine", "spectrum", "boundary"),
        timed=0,
    )
    stages.draw_all(job, lambda *_: None)
    likeness, spectrum, curve = conclude(job, lambda *_: None).figures
    assert [likeness.name, spectrum.name, curve.name] == ["cosine", "spectrum", "boundary-psnr"]
    assert (len(likeness.grid), len(likeness.grid[0])) == (BLOCKS, STEPS - 1)
    assert all(-1 <= value <= 1.0001 for row in likeness.grid for value in row if value is not None)
    assert len(spectrum.series) == 3
    (series,) = curve.series
    assert series.x == (0.0, 1.0)
    assert all(low <= y for low, y in zip(series.low, series.y, strict=True))


def test_an_unknown_figure_gets_the_near_match() -> None:
    with pytest.raises(BenchError, match=r"there is no figure 'cosin'.*'cosine'"):
        check_figures(("cosin",))
