"""The search: optuna's study proposes candidates, workers score them, and the study is told."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, final

import numpy as np

from deltapass.libraries import needs
from deltapass.schedule.explicit import AnySchedule
from deltapass.schedule.files import table_text
from deltapass.tuning.search.candidates import FAMILY, Candidate, Space
from deltapass.tuning.search.costs import Costs
from deltapass.tuning.search.goals import Goal, Scored
from deltapass.tuning.search.metrics import Metric, mean
from deltapass.tuning.search.sampler import scored_trials
from deltapass.tuning.search.scoring import Batch, Score, Task
from deltapass.tuning.search.study import put_back, quiet
from deltapass.tuning.search.workers import Workers

with needs("optuna", "tune"):
    from optuna.study import Study
    from optuna.trial import Trial, TrialState

VALUES, SECONDS, COMPILES, SCHEDULE = "values", "seconds", "compiles", "schedule"
DOUBT: Final = 2.0  # standard errors by which a trial must be worse to be stopped
FEWEST: Final = 4  # seeds before one is
DONE: Final = (TrialState.COMPLETE, TrialState.PRUNED)

Fit = Callable[[Candidate], AnySchedule]


@final
@dataclass(frozen=True, kw_only=True)
class Problem:
    """What is searched, and how candidates are judged.

    Attributes:
        space: All candidates.
        costs: What they cost.
        goals: What is looked for.
        fit: Gives a candidate its weights.
        batches: The seeds of the search.
        metric: How samples are compared.
    """

    space: Space
    costs: Costs
    goals: tuple[Goal, ...]
    fit: Fit
    batches: tuple[Batch, ...]
    metric: Metric


@final
@dataclass(kw_only=True)
class Running:
    """A trial on its way through the batches."""

    trial: Trial
    candidate: Candidate
    schedule: AnySchedule
    cost: float
    values: list[float] = field(default_factory=list)
    batches: int = 0
    seconds: float = 0.0
    compiles: int = 0


@final
class Search:
    """Asks a study for candidates and tells it how good they are.

    Args:
        problem: What is searched.
        study: With two directions, cost and loss; see `open_study`.
        workers: Who scores.
    """

    def __init__(self, problem: Problem, study: Study, workers: Workers) -> None:
        self._problem, self._study, self._workers = problem, study, workers
        self._running: dict[int, Running] = {}

    def begin_with(self, candidates: Iterable[Candidate]) -> None:
        """Try these first, but for those that the study knows from an earlier run."""
        with quiet():
            for candidate in candidates:
                params = self._problem.space.params(candidate)
                self._study.enqueue_trial(params, skip_if_exists=True)

    def run(
        self, trials: int, seconds: float | None = None, advance: Callable[[], None] | None = None
    ) -> None:
        """Search until the study holds a number of trials, or for some time.

        Args:
            trials: Trials in all, those of earlier runs among them.
            seconds: After which no further one is begun.
            advance: Called after each.

        Raises:
            KeyboardInterrupt: As it came; the trials that were running are begun anew by the next
                run.
        """
        until = math.inf if seconds is None else time.monotonic() + seconds
        begun = self.done
        try:
            while True:
                while begun < trials and self._room and time.monotonic() < until:
                    begun += 1
                    if not self._begin() and advance is not None:
                        advance()
                if not self._running:
                    return
                if self._take() and advance is not None:
                    advance()
        except BaseException:
            self._workers.close()
            put_back(self._study, [each.trial.number for each in self._running.values()])
            raise

    @property
    def done(self) -> int:
        """Trials that are over, those of earlier runs among them."""
        return sum(trial.state in DONE for trial in self._study.get_trials(deepcopy=False))

    @property
    def _room(self) -> bool:
        return len(self._running) < self._workers.slots

    def _begin(self) -> bool:
        """Ask for a trial and begin it; False if it is known, or costs too much, and so is over."""
        problem, trial = self._problem, self._study.ask()
        candidate = problem.space.candidate(asked(trial, problem.space))
        cost = problem.costs.share(candidate.rows)
        known = next((each for each in self.scored() if each.candidate == candidate), None)
        if known is not None:
            self._study.tell(trial, (known.cost, known.loss))
            return False
        if not any(problem.costs.fits(candidate.rows, goal.most) for goal in problem.goals):
            self._study.tell(trial, state=TrialState.PRUNED)
            return False
        running = Running(
            trial=trial, candidate=candidate, schedule=problem.fit(candidate), cost=cost
        )
        trial.set_user_attr(SCHEDULE, table_text(candidate.rows, problem.space.blocks))
        self._running[trial.number] = running
        self._submit(running)
        return True

    def _submit(self, running: Running) -> None:
        batch = self._problem.batches[running.batches]
        self._workers.submit(running.trial.number, Task(schedule=running.schedule, batch=batch))

    def _take(self) -> bool:
        """Wait for a score; whether its trial is over."""
        key, score = self._workers.take()
        running = self._running[int(str(key))]
        note(running, score)
        hopeless = self.hopeless(running.cost, running.values)
        if not hopeless and running.batches < len(self._problem.batches):
            self._submit(running)
            return False
        self._end(running, pruned=hopeless)
        return True

    def _end(self, running: Running, *, pruned: bool) -> None:
        trial = running.trial
        trial.set_user_attr(VALUES, running.values)
        trial.set_user_attr(SECONDS, running.seconds)
        trial.set_user_attr(COMPILES, running.compiles)
        if pruned:
            self._study.tell(trial, state=TrialState.PRUNED)
        else:
            loss = self._problem.metric.loss(mean(running.values))
            self._study.tell(trial, (running.cost, loss))
        del self._running[trial.number]

    def hopeless(self, cost: float, values: Sequence[float]) -> bool:
        """Whether a candidate that costs no less is surely nearer, by the seeds that both ran.

        Seeds are paired: what they have in common is most of what makes them differ.
        """
        seen = len(values)
        if not FEWEST <= seen < sum(batch.count for batch in self._problem.batches):
            return False
        cheaper = [each for each in self.scored() if each.cost <= cost]
        if not cheaper:
            return False
        rival = min(cheaper, key=lambda each: each.loss)
        theirs = self._study.trials[rival.number].user_attrs.get(VALUES, [])[:seen]
        if len(theirs) < seen:
            return False
        loss = self._problem.metric.loss
        worse = np.array([loss(a) - loss(b) for a, b in zip(values, theirs, strict=True)])
        return bool(worse.mean() > DOUBT * worse.std(ddof=1) / math.sqrt(seen) + 1e-12)

    def scored(self) -> list[Scored]:
        """The candidates that ran on all seeds."""
        return scored_trials(self._problem.space, self._study.get_trials(deepcopy=False))


def note(running: Running, score: Score) -> None:
    """Add what one batch gave."""
    running.values.extend(score.values)
    running.batches += 1
    running.seconds += score.seconds
    running.compiles += score.compiles


def asked(trial: Trial, space: Space) -> dict[str, Any]:
    """The parameters of a trial, those of its family alone."""
    distributions = space.distributions()

    def suggest(name: str) -> Any:
        given = distributions[name]
        if hasattr(given, "choices"):
            return trial.suggest_categorical(name, given.choices)
        return trial.suggest_int(name, given.low, given.high)

    family = suggest(FAMILY)
    return {FAMILY: family, **{name: suggest(name) for name in space.names(family)[1:]}}
