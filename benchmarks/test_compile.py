"""Compile times under Inductor, cold and from what a process before left: run by `make bench`.

Each round is a new process; the cold ones have an Inductor cache of their own. The table's seconds
are of the whole process, imports included; `model_s` and the others in `extra_info` are what
compile_time.py means by them, medians over the rounds.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from compile_time import new_process
from measure import median

ROUNDS = 2


@pytest.fixture
def options(request: pytest.FixtureRequest) -> list[str]:
    """The model and where it runs, as compile_time.py takes them."""
    names = ("model", "device", "dtype")
    return [f"--{name}={request.config.getoption(name)}" for name in names]


@pytest.mark.parametrize("how", ["plain-cold", "blocks-cold", "plain-second", "blocks-second"])
def test_compile(
    benchmark: Any, gate: Callable[[str], None], options: list[str], tmp_path: Path, how: str
) -> None:
    """Imports, model, compile and first call."""
    gate("run of tiny dit")
    case, start = how.split("-")
    run = functools.partial(new_process, case, options)
    if start == "second":
        run(tmp_path)
    runs: list[dict[str, float]] = []

    def once(cache: Path) -> None:
        runs.append(run(cache))

    def setup() -> tuple[tuple[Path], dict[str, Any]]:
        cache = tmp_path / str(len(runs)) if start == "cold" else tmp_path
        cache.mkdir(exist_ok=True)
        return (cache,), {}

    benchmark.group = f"compile, {options[0]}"
    benchmark.pedantic(once, setup=setup, rounds=ROUNDS)
    for name in runs[0]:
        benchmark.extra_info[name] = median(taken[name] for taken in runs)
