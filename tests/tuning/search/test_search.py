"""tuning/search/search.py: trials that are stopped early, known, or too dear; without a model."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("optuna")

from deltapass.errors import TuneError
from deltapass.schedule.rules import Span
from deltapass.tuning.search.candidates import Candidate, Space
from deltapass.tuning.search.costs import MACS, Costs
from deltapass.tuning.search.goals import Goal
from deltapass.tuning.search.metrics import METRICS
from deltapass.tuning.search.priors import table_of
from deltapass.tuning.search.sampler import Neighbours
from deltapass.tuning.search.scoring import Score, Task, batches_of
from deltapass.tuning.search.search import Problem, Search
from deltapass.tuning.search.study import open_study

FULL = Span(0, 4)
SPACE = Space(steps=6, blocks=4, spans=(FULL,), forecasts=("reuse",), rules=False)
COSTS = Costs(unit=MACS, steps=6, full=1.0, spans={FULL: 0.0})
GOAL = Goal(most=0.5)


class Made:
    """Workers whose scores are made up: a seed's own part, and what the refreshes make of it."""

    slots = 1

    def __init__(self, noise: float = 1.0) -> None:
        self.noise, self.waiting, self.batches = noise, [], Counter[Any]()
        self.closed = False

    def submit(self, key: Hashable, task: Task) -> None:
        self.waiting.append((key, task))

    def take(self) -> tuple[Hashable, Score]:
        key, task = self.waiting.pop()
        rows = task.schedule.table(6, 4)
        self.batches[rows] += 1
        loss = float(sum(step for step, row in enumerate(rows) if row is None))
        values = tuple(loss + self.noise * (seed % 5) for seed in task.batch.seeds)
        return key, Score(values=values, steps=6, seconds=0.5, compiles=0, share=0.5)

    def close(self) -> None:
        self.closed = True


def search(workers: Made, place: str | None = None) -> tuple[Search, Any]:
    problem = Problem(
        space=SPACE,
        costs=COSTS,
        goals=(GOAL,),
        fit=lambda candidate: candidate.plain,
        batches=batches_of(range(12), 4),
        metric=METRICS["mse"],
    )
    study = open_study(place, {"about": "this"}, Neighbours(SPACE, COSTS, (GOAL,), 0))
    return Search(problem, study, workers), study


def tables(*places: tuple[int, ...]) -> list[Candidate]:
    return [Candidate(table_of(each, FULL, 6), "reuse") for each in places]


def test_a_trial_that_is_surely_worse_is_stopped_after_its_first_seeds() -> None:
    """Seeds differ more than candidates do, and are paired: what they have in common cancels."""
    workers = Made(noise=100.0)
    ours, study = search(workers)
    good, bad = tables((0, 1, 2), (0, 3, 5))
    ours.begin_with((good, bad))
    ours.run(2)
    assert [workers.batches[each.rows] for each in (good, bad)] == [3, 1]
    states = [trial.state.name for trial in study.trials]
    assert states == ["COMPLETE", "PRUNED"]
    assert study.trials[0].values == [
        0.5,
        3.0 + 100.0 * (0 + 1 + 2 + 3 + 4 + 0 + 1 + 2 + 3 + 4 + 0 + 1) / 12,
    ]
    assert study.trials[1].user_attrs["values"] == [8.0, 108.0, 208.0, 308.0]
    assert [each.number for each in ours.scored()] == [0]


def test_a_cheaper_one_is_not_stopped_for_being_worse() -> None:
    workers = Made()
    ours, _ = search(workers)
    good, cheap = tables((0, 1, 2), (0, 5))
    ours.begin_with((good, cheap))
    ours.run(2)
    assert [workers.batches[each.rows] for each in (good, cheap)] == [3, 3]


def test_what_costs_too_much_or_is_known_is_not_run() -> None:
    workers = Made()
    ours, study = search(workers)
    dear, good = tables((0, 1, 2, 3), (0, 1, 2))
    ours.begin_with((dear, good))
    ours.run(2)
    study.enqueue_trial(SPACE.params(good))
    ours.run(3)
    assert workers.batches == {good.rows: 3}
    assert [trial.state.name for trial in study.trials] == ["PRUNED", "COMPLETE", "COMPLETE"]
    assert study.trials[2].values == study.trials[1].values


def test_time_may_end_a_search() -> None:
    ours, study = search(Made())
    ours.run(50, seconds=0.0)
    assert not study.trials


def test_what_was_cut_off_is_begun_again(tmp_path: Path) -> None:
    place = str(tmp_path / "trials.journal")
    workers = Made()
    ours, study = search(workers, place)
    (cut,) = tables((0, 2, 4))
    ours.begin_with((cut,))
    workers.take = lambda: (_ for _ in ()).throw(KeyboardInterrupt)  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt):
        ours.run(4)
    assert workers.closed and ours.done == 0
    more = Made()
    again, study = search(more, place)
    again.run(1)
    assert more.batches == {cut.rows: 3}
    assert [trial.state.name for trial in study.trials] == ["FAIL", "COMPLETE"]


@pytest.mark.parametrize("place", ["/dev/null/all.journal", "sqlite:////nowhere/at/all.db"])
def test_a_place_that_takes_no_trials_is_an_error(place: str) -> None:
    with pytest.raises(TuneError, match="trials cannot be kept in"):
        search(Made(), place)


def test_a_new_folder_is_made_for_the_trials(tmp_path: Path) -> None:
    place = tmp_path / "new" / "trials.journal"
    search(Made(), str(place))
    assert place.exists()


def test_a_database_may_keep_the_trials(tmp_path: Path) -> None:
    place = f"sqlite:///{tmp_path}/trials.db"
    ours, _ = search(Made(), place)
    ours.run(3)
    assert search(Made(), place)[0].done == 3
