"""The search's own sampler for optuna: neighbours of the best candidates known so far.

It keeps nothing: what it proposes follows from the study's trials, the seed and the trial's number.
So a search that is interrupted goes on where it stopped, and several may share one storage.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Final, final

from deltapass.libraries import needs
from deltapass.schedule.rules import Span
from deltapass.tuning.search.candidates import (
    BOUNDARY,
    CACHED,
    FAMILY,
    FORECAST,
    INTERVAL,
    RULE,
    Candidate,
    Space,
)
from deltapass.tuning.search.costs import Costs
from deltapass.tuning.search.goals import Goal, Scored

with needs("optuna", "tune"):
    from optuna.distributions import BaseDistribution
    from optuna.samplers import BaseSampler, RandomSampler
    from optuna.study import Study
    from optuna.trial import FrozenTrial, TrialState

TRIES: Final = 200  # to find a neighbour that is affordable and new
GREEDY: Final = 0.5  # how often the very best one is the parent; then the second, and so on
AGAIN: Final = 0.3  # how often one move more is made
NEAR: Final = 2  # steps that a refresh is shifted by, mostly
RULES: Final = 0.1  # part of the proposals that stay in the paper's family
Move = Callable[[random.Random, Candidate], Candidate]


@final
class Neighbours(BaseSampler):
    """Proposes changed copies of the best candidates: other refreshes, spans or forecasts.

    Args:
        space: What is searched.
        costs: What candidates cost.
        goals: What is looked for; each trial works at one of them, in turn.
        seed: Of the proposals.
    """

    def __init__(self, space: Space, costs: Costs, goals: Sequence[Goal], seed: int) -> None:
        self._space, self._costs, self._goals, self._seed = space, costs, tuple(goals), seed
        self._distributions = space.distributions()
        self._random = RandomSampler(seed=seed)

    def infer_relative_search_space(
        self, study: Study, trial: FrozenTrial
    ) -> dict[str, BaseDistribution]:
        """All parameters of both families."""
        return dict(self._distributions)

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """The parameters of a neighbour that is affordable and was not tried yet."""
        rng = random.Random(f"{self._seed}/{trial.number}")
        goal = self._goals[trial.number % len(self._goals)]
        trials = study.get_trials(deepcopy=False)
        tried = {self._space.candidate(t.params) for t in trials if _whole(self._space, t)}
        best = goal.ranked(scored_trials(self._space, trials))
        if not best:
            return self._space.params(self._anything(rng, goal))
        rules = [t.params for t in trials if t.params.get(FAMILY) == RULE]
        for _ in range(TRIES):
            if rules and rng.random() < RULES:
                params = self._other_rule(rng, rng.choice(rules))
                child = self._space.candidate(params)
            else:
                child = self._neighbour(rng, best[_rank(rng, len(best))].candidate, goal)
                params = self._space.params(child)
            if child not in tried and self._costs.fits(child.rows, goal.most):
                return params
        return self._space.params(self._anything(rng, goal))

    def sample_independent(
        self,
        study: Study,
        trial: FrozenTrial,
        param_name: str,
        param_distribution: BaseDistribution,
    ) -> Any:
        """Whatever optuna asks for beside a whole candidate: at random."""
        return self._random.sample_independent(study, trial, param_name, param_distribution)

    # ---- moves --------------------------------------------------------------------------------

    def _neighbour(self, rng: random.Random, parent: Candidate, goal: Goal) -> Candidate:
        moves = self._moves()
        child = rng.choice(moves)(rng, parent)
        while rng.random() < AGAIN:
            child = rng.choice(moves)(rng, child)
        return self._afforded(rng, child, goal)

    def _moves(self) -> list[Move]:
        moves: list[Move] = [self._shift, self._shift, self._shift, self._swap]
        if len(self._space.spans) > 1:
            moves.append(self._respan)
        if len(self._space.forecasts) > 1:
            moves.append(self._reforecast)
        return moves

    def _shift(self, rng: random.Random, parent: Candidate) -> Candidate:
        """A refresh moved to a step nearby."""
        movable = [at for at in parent.refreshes if at]
        if not movable:
            return parent
        at = rng.choice(movable)
        nearby = range(max(1, at - NEAR), min(self._space.steps, at + NEAR + 1))
        free = [step for step in nearby if parent.rows[step] is not None]
        return _exchanged(parent, at, rng.choice(free)) if free else parent

    def _swap(self, rng: random.Random, parent: Candidate) -> Candidate:
        """A refresh moved to any cached step."""
        movable = [at for at in parent.refreshes if at]
        free = [step for step, row in enumerate(parent.rows) if row is not None]
        if not movable or not free:
            return parent
        return _exchanged(parent, rng.choice(movable), rng.choice(free))

    def _respan(self, rng: random.Random, parent: Candidate) -> Candidate:
        """Another span for one cached row, for those up to the next refresh, or for all."""
        cached = [step for step, row in enumerate(parent.rows) if row is not None]
        if not cached:
            return parent
        step, span = rng.choice(cached), rng.choice(self._space.spans)
        chosen = rng.choice(({step}, _run_of(parent, step), {*cached}))
        rows = tuple(span if at in chosen else row for at, row in enumerate(parent.rows))
        return replace(parent, rows=rows)

    def _reforecast(self, rng: random.Random, parent: Candidate) -> Candidate:
        return replace(parent, forecast=rng.choice(self._space.forecasts))

    def _other_rule(self, rng: random.Random, params: Mapping[str, Any]) -> dict[str, Any]:
        """The paper's rule with one of N, N_c, b or the forecast changed."""
        name = rng.choice((INTERVAL, CACHED, BOUNDARY, FORECAST))
        given = self._distributions[name]
        if name in (INTERVAL, BOUNDARY):
            value = params[name] + rng.choice((-2, -1, 1, 2))
            return {**params, name: min(given.high, max(given.low, value))}
        return {**params, name: rng.choice(given.choices)}

    # ---- what is affordable -------------------------------------------------------------------

    def _afforded(self, rng: random.Random, child: Candidate, goal: Goal) -> Candidate:
        """A candidate made to use up what the goal allows, and no more."""
        rows = list(child.rows)
        # In another order every time: which refresh goes, or comes, is part of the search.
        order = rng.sample(range(1, len(rows)), len(rows) - 1)
        for step in order:
            if rows[step] is None and not self._costs.fits(tuple(rows), goal.most):
                rows[step] = self._cheapest
        if goal.spends:
            self._spend(rows, order, goal)
        elif rng.random() < 0.5:  # cheaper than its parent, for a goal that looks for that
            dear = [step for step in order if rows[step] != self._cheapest]
            rows[dear[0] if dear else order[0]] = self._cheapest
        return replace(child, rows=tuple(rows))

    def _spend(self, rows: list[Span | None], order: Sequence[int], goal: Goal) -> None:
        """Refresh, or skip less, wherever the goal still pays for it."""
        for step in order:
            dearer = [span for span in self._space.spans if self._more(span, rows[step])]
            for row in (None, *sorted(dearer, key=self._costs.spans.__getitem__, reverse=True)):
                fuller = (*rows[:step], row, *rows[step + 1 :])
                if rows[step] is not None and self._costs.fits(fuller, goal.most):
                    rows[step] = row
                    break

    def _more(self, span: Span, row: Span | None) -> bool:
        """Whether a span costs more than a row and skips no other blocks."""
        within = row is not None and row.start <= span.start and span.stop <= row.stop
        return within and span != row

    @property
    def _cheapest(self) -> Span:
        spans = self._costs.spans
        return min(self._space.spans, key=lambda span: spans[span])

    def _anything(self, rng: random.Random, goal: Goal) -> Candidate:
        rows = (None, *(rng.choice((None, self._cheapest)) for _ in self._space.steps_that_vary))
        return self._afforded(rng, Candidate(rows, rng.choice(self._space.forecasts)), goal)


def _exchanged(parent: Candidate, refresh: int, cached: int) -> Candidate:
    """A refresh and a cached row in each other's place."""
    rows = list(parent.rows)
    rows[refresh], rows[cached] = rows[cached], rows[refresh]
    return replace(parent, rows=tuple(rows))


def _run_of(parent: Candidate, step: int) -> set[int]:
    """The cached steps around one, up to the refreshes on either side."""
    start = max(at for at in parent.refreshes if at < step)
    later = [at for at in parent.refreshes if at > step]
    return {*range(start + 1, later[0] if later else len(parent.rows))}


def _rank(rng: random.Random, count: int) -> int:
    """0 in half of the cases, 1 in a quarter, and so on."""
    rank = 0
    while rank < count - 1 and rng.random() > GREEDY:
        rank += 1
    return rank


def _whole(space: Space, trial: FrozenTrial) -> bool:
    """Whether a trial has all its parameters."""
    family = trial.params.get(FAMILY)
    return family is not None and {*space.names(family)} <= {*trial.params}


def scored_trials(space: Space, trials: Sequence[FrozenTrial]) -> list[Scored]:
    """The trials that were evaluated to the end."""
    return [
        Scored(space.candidate(trial.params), trial.values[0], trial.values[1], trial.number)
        for trial in trials
        if trial.state is TrialState.COMPLETE and _whole(space, trial)
    ]
