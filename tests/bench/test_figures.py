"""Figures by name: sweeps over a setting, and what looks into images or the model."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from bench_records import record, row, values
from models import make

from deltapass.bench.figures import FIGURES, Drawn, check_figures, figures_of
from deltapass.errors import BenchError


def drawn(*rows: Any, **given: Any) -> Drawn:
    made = record(row("plain", 1.0, {"kid": values(0)}, steps=3), *rows)
    told = {"images": {}, **given}
    return Drawn(rows=made.rows, measures=made.measures, reference="plain", **told)


def swept(at: float, kid: float, **settings: Any) -> Any:
    name = f"delta-dit-{at}-{len(settings)}"
    found = {"kid": values(kid, int(at * 10))}
    return row(name, 0.6, found, settings={"boundary": at, **settings})


def test_a_sweep_is_a_curve_over_its_setting_for_each_measure_and_each_other_setting() -> None:
    rows = [swept(0.8, 1), swept(0.2, 2), swept(0.5, 3, interval=3), swept(0.2, 4, interval=3)]
    failed = row("failed", 0.6, {"kid": values(0)}, settings={"boundary": 0.1}, failure="broke")
    (figure,) = figures_of(["boundary"], drawn(*rows, failed))
    assert figure.name == "boundary-kid"
    alone, with_interval = figure.series
    assert alone.x == (0.2, 0.8)
    assert alone.y == pytest.approx([1000 * rows[i].means["kid"].mean for i in (1, 0)])
    assert with_interval.name == "interval = 3"
    assert with_interval.x == (0.2, 0.5)
    assert all(low < y < high for low, y, high in zip(alone.low, alone.y, alone.high, strict=True))


def test_the_spectrum_is_of_rows_that_cache() -> None:
    images = {
        name: torch.rand(4, 3, 8, 8, generator=torch.Generator().manual_seed(seed))
        for seed, name in enumerate(("plain", "plain-13", "ours"))
    }
    rows = (row("plain-13", 0.7, {}), row("ours", 0.6, {}), row("not drawn", 0.6, {}))
    (figure,) = figures_of(["spectrum"], drawn(*rows, images=images))
    assert [series.name for series in figure.series] == ["plain", "ours, less plain"]


def test_likeness_is_of_the_model_on_as_many_steps_as_the_reference_has() -> None:
    toy = make("adaln")

    def sample(model: Any) -> None:
        for step in range(3):
            args, kwargs = toy.inputs(900.0 - 100 * step)
            model(*args, **kwargs)

    (figure,) = figures_of(["cosine"], drawn(model=toy, sample=sample))
    assert (len(figure.grid), len(figure.grid[0])) == (6, 2)
    with pytest.raises(BenchError, match="no denoiser was given"):
        figures_of(["cosine"], drawn())


def test_unknown_figures_are_an_error() -> None:
    check_figures([*FIGURES])
    with pytest.raises(BenchError, match=r"no figure 'spectrun'.*spectrum"):
        check_figures(["spectrun"])
