"""tuning/search/workers.py: in process, by what Ray promises, and by Ray if it is installed."""

from __future__ import annotations

import functools
import importlib.util
import itertools
import os
import pickle
import sys
from collections.abc import Iterator, Sequence
from types import SimpleNamespace
from typing import Any

import pytest
import torch

pytest.importorskip("optuna")

from own_loop import Loop, toy_loop

import deltapass
from deltapass.errors import MissingLibraryError, TuneError
from deltapass.tuning.loops import open_loop
from deltapass.tuning.search.metrics import METRICS
from deltapass.tuning.search.scoring import Score, Scorer, Task, batches_of
from deltapass.tuning.search.workers import InProcess, RayWorkers, spread

HOW: dict[str, Any] = {"steps": 4}
SCHEDULE = deltapass.Schedule(cached_blocks=4, boundary=2)
TASKS = [
    Task(schedule=schedule, batch=batch)
    for schedule in (SCHEDULE, deltapass.Schedule(cached_blocks=2, boundary=2))
    for batch in batches_of(range(6), 2)
]
SMALL: dict[str, Any] = {
    "budget": 0.6,
    "steps": 5,
    "seeds": 2,
    "batch": 1,
    "held_out": 2,
    "trials": 5,
    "spans": ("full",),
    "forecasts": ("linear",),
    "progress": False,
}


@functools.cache
def made() -> Loop:
    torch.manual_seed(0)
    return toy_loop()


def loop(seeds: Sequence[int], session: deltapass.Session) -> torch.Tensor:
    """A loop that can be sent: it makes its model where it runs."""
    return made()(seeds, session)


def values(found: dict[int, Score]) -> list[tuple[float, ...]]:
    return [found[place].values for place in range(len(found))]


def in_process() -> dict[int, Score]:
    with open_loop(loop, **HOW) as opened:
        return dict(spread(InProcess(Scorer(opened, METRICS["psnr"])), TASKS))


# ---- what Ray promises --------------------------------------------------------------------------


class Ray:
    """As much of Ray as is used here, in one process: results come in any order, the last first."""

    def __init__(self, resources: dict[str, float]) -> None:
        self._resources, self._started = resources, False
        self._numbers = itertools.count()
        self._results: dict[int, Any] = {}
        self.wanted: dict[str, Any] = {}
        self.killed = 0
        self.most = 0  # tasks at once

    def is_initialized(self) -> bool:
        return self._started

    def init(self, address: str | None, **_: Any) -> None:
        if address is not None:
            raise ConnectionError("nobody answers")
        self._started = True

    def shutdown(self) -> None:
        self._started = False

    def cluster_resources(self) -> dict[str, float]:
        return self._resources

    def put(self, value: Any) -> Any:
        return pickle.loads(pickle.dumps(value))

    def remote(self, **wanted: Any) -> Any:
        self.wanted = wanted

        def made(kind: type) -> Any:
            return SimpleNamespace(remote=lambda *given: self._actor(kind(*given)))

        return made

    def _actor(self, held: Any) -> Any:
        def work(task: Task) -> int:
            number = next(self._numbers)
            self._results[number] = held.work(task)
            return number

        return SimpleNamespace(work=SimpleNamespace(remote=work))

    def wait(self, running: list[int], num_returns: int) -> tuple[list[int], list[int]]:
        assert num_returns == 1
        self.most = max(self.most, len(running))
        return [running[-1]], running[:-1]

    def get(self, number: int) -> Any:
        return self._results.pop(number)

    def kill(self, _: Any) -> None:
        self.killed += 1


@pytest.fixture
def ray(monkeypatch: pytest.MonkeyPatch) -> Iterator[Ray]:
    made = Ray({"CPU": 3.0})
    monkeypatch.setitem(sys.modules, "ray", made)
    yield made
    assert not made.is_initialized()  # what was started here is ended here


def test_tasks_come_back_to_their_places_whatever_the_order(ray: Ray) -> None:
    workers = RayWorkers("local", loop, HOW, METRICS["psnr"])
    assert workers.slots == 3 and ray.wanted == {"num_cpus": 1}
    found = dict(spread(workers, TASKS))
    workers.close()
    assert ray.killed == 3 and 1 < ray.most <= 3
    assert values(found) == [pytest.approx(each) for each in values(in_process())]


def test_a_search_finds_the_same_through_workers(ray: Ray) -> None:
    """Trials run side by side, so others are proposed; what each one scores is the same."""
    apart = deltapass.tune(loop, **SMALL, ray="local", workers=2)
    alone = deltapass.tune(loop, **SMALL)
    known = dict(alone.trials)
    assert ray.most == 2 and len(apart.trials) == len(alone.trials)
    assert apart.trials[0] == pytest.approx(alone.trials[0])
    assert {cost for cost, _ in apart.trials} <= {*known}
    held = [each.mean for each in apart.measured if each.kind == "plain"]
    assert held == pytest.approx([each.mean for each in alone.measured if each.kind == "plain"])


def test_gpus_are_taken_whole(ray: Ray) -> None:
    ray.cluster_resources().update(GPU=2.0)
    workers = RayWorkers("local", loop, HOW, METRICS["psnr"])
    assert workers.slots == 2 and ray.wanted == {"num_gpus": 1}
    workers.close()


def test_what_cannot_be_sent_is_an_error(ray: Ray) -> None:
    with pytest.raises(TuneError, match="cannot be sent to Ray's workers"):
        RayWorkers("local", lambda seeds, session: None, HOW, METRICS["psnr"])
    assert not ray.is_initialized()


def test_an_address_where_nobody_answers_is_an_error(ray: Ray) -> None:
    with pytest.raises(TuneError, match=r"there is no Ray at '10\.0\.0\.1:6379': nobody answers"):
        RayWorkers("10.0.0.1:6379", loop, HOW, METRICS["psnr"])


@pytest.mark.skipif(importlib.util.find_spec("ray") is not None, reason="Ray is installed")
def test_without_ray_the_extra_is_named() -> None:
    with pytest.raises(MissingLibraryError, match=r"deltapass\[ray\]"):
        deltapass.tune(loop, **SMALL, ray="local")


# ---- Ray itself ---------------------------------------------------------------------------------

installed = pytest.mark.skipif(
    importlib.util.find_spec("ray") is None,
    reason="needs Ray, which the tests do not install: pip install '.[ray]'",
)


@installed
@pytest.mark.filterwarnings("ignore")
def test_a_search_through_ray_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    import ray as library

    # Its workers are processes of their own, which have to find these tests' modules.
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(sys.path))
    apart = deltapass.tune(loop, **SMALL, ray="local", workers=2)
    assert len(apart.trials) == 5 and apart.found and apart.measured
    assert not library.is_initialized()
