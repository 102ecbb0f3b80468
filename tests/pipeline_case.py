"""Compiled pipelines of the zoo, and what a call of one must equal and leave behind.

Import this module only behind `pytest.importorskip("diffusers")` and `"transformers"`.
"""

from __future__ import annotations

import copy
import weakref
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import pytest
import torch
from models.zoo import ZOO_NAMES, Zoo, make_pipe
from pipeline_oracle import oracle_in
from torch import Tensor, nn

import deltapass
from deltapass.schedule.rules import Span, Table
from deltapass.sessions.deltas import History

OPTIONS: dict[str, Any] = {"lowering": "eager", "cached_blocks": 2, "boundary": 0.5}
SCHEDULE = deltapass.Schedule(cached_blocks=2, boundary=0.5)
CACHED = tuple(name for name in ZOO_NAMES if name != "lumina2")  # which no graph can be made of
INTERRUPTED = tuple(n for n in CACHED if n != "dit" and not n.startswith("pixart"))

original: Callable[[str], Zoo] = cache(make_pipe)


# ---- pipelines -----------------------------------------------------------------------------------


def compiled(model: nn.Module, **options: Any) -> Any:
    """A new shape is compiled alone, which is quicker than for any shape."""
    return torch.compile(model, backend="deltadit", dynamic=False, options=options or OPTIONS)


def compiled_pipe(name: str = "pixart-dpm", **options: Any) -> Zoo:
    """Compiled, and not attached."""
    zoo = make_pipe(name)
    zoo.pipe.transformer = compiled(zoo.denoiser, **options)
    return zoo


def attached_pipe(name: str, **options: Any) -> Zoo:
    """Compiled, and attached."""
    zoo = compiled_pipe(name, **options)
    deltapass.attach(zoo.pipe)
    return zoo


def copied(zoo: Zoo) -> Any:
    """A pipeline for another thread, as AttachError says."""
    pipe = copy.copy(zoo.pipe)
    pipe.scheduler = copy.deepcopy(zoo.pipe.scheduler)
    deltapass.attach(pipe)
    return pipe


# ---- what a call must equal ----------------------------------------------------------------------


def expected(
    plain: Zoo, table: Sequence[Span | None], extra: dict[str, Any] | None = None, **overrides: Any
) -> Tensor:
    """A call of an uncompiled pipeline with the table's Delta-Cache in plain PyTorch."""
    if extra or plain is not original(plain.name):
        with oracle_in(plain, table, **overrides):
            return plain.pipe(**{**plain.call(**overrides), **(extra or {})})[0]
    return _expected(plain.name, tuple(table), tuple(sorted(overrides.items())))


@cache
def _expected(name: str, table: Table, overrides: tuple[tuple[str, Any], ...]) -> Tensor:
    """Many tests make the same calls: each is computed once."""
    plain, request = original(name), dict(overrides)
    with oracle_in(plain, table, **request):
        return plain.run(**request)


def table_of(zoo: Zoo, schedule: deltapass.Schedule = SCHEDULE, **overrides: Any) -> Table:
    """What an attached call does."""
    return schedule.table(zoo.request(**overrides).steps, len(zoo.blocks), zoo.start(**overrides))


def report_of(pipe: Any) -> deltapass.SessionReport:
    """The report of the last call; of an unattached pipeline ask its denoiser."""
    report = deltapass.last_report(pipe)
    assert report is not None
    return report


def realised(report: deltapass.SessionReport | None) -> Table:
    assert report is not None
    return tuple(entry.realised for entry in report.entries)


def check_entries(report: deltapass.SessionReport, run: Table, branches: int, start: int) -> None:
    """Call by call: the rows `run`, of steps counted from `start`."""
    calls = [(start + step, span) for step, span in enumerate(run) for _ in range(branches)]
    assert [(entry.step, entry.realised) for entry in report.entries] == calls
    assert report.as_planned


def check_attached(zoo: Zoo, **overrides: Any) -> None:
    """One call: the result, the plan, and what was done call by call."""
    table, start = table_of(zoo, **overrides), zoo.start(**overrides)
    result = zoo.run(**overrides)
    assert torch.equal(result, expected(original(zoo.name), table, **overrides))
    report = report_of(zoo.pipe)
    check_entries(report, table[start:], zoo.branches(**overrides), start)
    assert 0 < report.cached < report.calls


def refusals(caught: Any) -> list[str]:
    """The texts of our own warnings."""
    return [str(one.message) for one in caught if one.category is deltapass.RefusalWarning]


# ---- what it leaves behind -----------------------------------------------------------------------


def deltas_kept(monkeypatch: pytest.MonkeyPatch) -> Callable[[], int]:
    """How many deltas of those made since are still in memory."""
    deltas: list[weakref.ref[Tensor]] = []
    push = History.push

    def noting(self: History, new: tuple[Tensor, ...], *args: Any) -> None:
        deltas.extend(map(weakref.ref, new))
        push(self, new, *args)

    def count() -> int:
        assert deltas, "none were made"
        return sum(delta() is not None for delta in deltas)

    monkeypatch.setattr(History, "push", noting)
    return count
