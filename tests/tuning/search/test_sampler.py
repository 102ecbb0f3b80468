"""tuning/search/sampler.py: what is proposed, apart from any model."""

from __future__ import annotations

from typing import Any

import pytest

pytest.importorskip("optuna")

from deltapass.tuning.search.candidates import RULE, Candidate, Space, default_spans
from deltapass.tuning.search.costs import MACS, Costs
from deltapass.tuning.search.goals import Goal
from deltapass.tuning.search.priors import table_of
from deltapass.tuning.search.sampler import Neighbours, scored_trials
from deltapass.tuning.search.search import asked
from deltapass.tuning.search.study import open_study

SPANS = default_spans(8)
SPACE = Space(steps=10, blocks=8, spans=SPANS, forecasts=("linear", "reuse"))
COSTS = Costs(unit=MACS, steps=10, full=1.0, spans={s: 1.0 - len(s) / 8 for s in SPANS})
BEST = (0, 1, 3, 7)  # what the trials of `searched` are judged by


def searched(goal: Goal, trials: int, seed: int = 0, space: Space = SPACE) -> Any:
    """A study of candidates judged by how far their refreshes are from BEST."""
    study = open_study(None, {}, Neighbours(space, COSTS, (goal,), seed))
    for _ in range(trials):
        trial = study.ask()
        candidate = space.candidate(asked(trial, space))
        study.tell(trial, (COSTS.share(candidate.rows), distance(candidate)))
    return study


def distance(candidate: Candidate) -> float:
    where = candidate.refreshes
    near = sum(min(abs(at - best) for at in where) for best in BEST)
    return near + 0.01 * len({*candidate.rows})


def test_what_is_proposed_is_affordable_new_and_spends_what_there_is() -> None:
    goal = Goal(most=0.4)
    found = [each.candidate for each in scored_trials(SPACE, searched(goal, 40).trials)]
    assert len(found) == 40
    assert len({*found[1:]}) == 39
    assert all(COSTS.fits(each.rows, 0.4) for each in found)
    by_rows = [each for each in found if each.rows != table_of(each.refreshes, SPANS[0], 10)]
    assert by_rows  # spans are mixed too
    for each in found:
        fuller = [
            (*each.rows[:step], None, *each.rows[step + 1 :])
            for step, row in enumerate(each.rows)
            if row is not None
        ]
        assert not any(COSTS.fits(rows, 0.4) for rows in fuller)


def test_the_best_is_found() -> None:
    one = Space(steps=10, blocks=8, spans=SPANS[:1], forecasts=("linear",))
    best = Goal(most=0.4).best(scored_trials(one, searched(Goal(most=0.4), 60, space=one).trials))
    assert best is not None and best.candidate.refreshes == BEST  # one of 84


def test_proposals_follow_from_trials_and_seed_alone() -> None:
    first, again = (searched(Goal(most=0.4), 12) for _ in range(2))
    other = searched(Goal(most=0.4), 12, seed=1)
    params = [[trial.params for trial in study.trials] for study in (first, again, other)]
    assert params[0] == params[1] != params[2]


def test_a_quality_is_looked_for_with_ever_less_cost() -> None:
    scored = scored_trials(SPACE, searched(Goal(worst=1.5), 60).trials)
    met = [each for each in scored if Goal(worst=1.5).met(each)]
    assert min(each.cost for each in met) == pytest.approx(0.3)  # one refresh less than in BEST


def test_the_papers_family_is_varied_too() -> None:
    study = searched(Goal(most=0.9), 1)
    rule = {"family": RULE, "forecast": "reuse", "interval": 2, "cached_blocks": 4, "boundary": 5}
    study.enqueue_trial(rule)
    for _ in range(60):
        trial = study.ask()
        candidate = SPACE.candidate(asked(trial, SPACE))
        study.tell(trial, (COSTS.share(candidate.rows), distance(candidate)))
    rules = [trial.params for trial in study.trials if trial.params["family"] == RULE]
    assert len(rules) > 2 and any(params["interval"] != 2 for params in rules)
