"""Setting the deltas of a request aside and bringing them back: run by `make bench`."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from denoisers import Denoiser

import deltapass

STEPS = 20


@pytest.fixture(scope="module")
def session(denoiser: Denoiser) -> Iterator[deltapass.Session]:
    """A session after its first step, with a delta in it."""
    options = {"steps": STEPS, "schedule": "delta-dit", "interval": 2, "lowering": "eager"}
    model = torch.compile(denoiser.model, backend="deltadit", options=options)
    with deltapass.session(steps=STEPS) as started:
        started.step(0)
        args, kwargs = denoiser.inputs(999.0)
        model(*args, **kwargs)
        assert started.nbytes
        yield started


@pytest.mark.benchmark(group="suspend and resume")
@pytest.mark.parametrize("where", ["memory", "file"])
def test_suspend_and_resume(
    benchmark: Any,
    gate: Callable[[str], None],
    session: deltapass.Session,
    tmp_path: Path,
    where: str,
) -> None:
    """Both, one after the other."""
    gate("run of tiny dit")
    held, names = session.nbytes, itertools.count()

    def there_and_back() -> None:
        session.suspend(None if where == "memory" else tmp_path / f"{next(names)}.pt")
        session.resume()

    benchmark.extra_info["bytes"] = held
    benchmark(there_and_back)
    assert session.nbytes == held
