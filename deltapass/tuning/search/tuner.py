"""The stages of `tune`: measure costs, record deltas, search, fit what was found, measure it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Final, final

from rich.progress import Progress

from deltapass.errors import OptionError, TuneError
from deltapass.schedule.files import table_rows
from deltapass.schedule.made_for import MadeFor, made_for_content
from deltapass.tuning.loops import Loop
from deltapass.tuning.search.asked import PLAIN_KEY, Asked
from deltapass.tuning.search.beside import held_out, methods
from deltapass.tuning.search.candidates import Candidate, Space
from deltapass.tuning.search.costs import Costs
from deltapass.tuning.search.goals import Goal, Scored
from deltapass.tuning.search.metrics import mean
from deltapass.tuning.search.pairs import Pairs
from deltapass.tuning.search.preparing import measured_space, recorded, spans_wanted
from deltapass.tuning.search.priors import Priors, table_of
from deltapass.tuning.search.refine import refined
from deltapass.tuning.search.sampler import Neighbours
from deltapass.tuning.search.scoring import Scorer, Task
from deltapass.tuning.search.search import COMPILES, DONE, Problem, Search
from deltapass.tuning.search.study import open_study
from deltapass.tuning.search.tuned import Found, Measured, Tuned
from deltapass.tuning.search.workers import InProcess, Workers, spread
from deltapass.tuning.subject import look_at

FINALISTS: Final = 3  # candidates of a goal that are fitted anew


@final
@dataclass(frozen=True)
class Prepared:
    """What is known before the first trial."""

    space: Space
    costs: Costs
    pairs: Pairs
    made_for: MadeFor
    goals: tuple[Goal, ...]


@final
class Tuner:
    """One search, from the first look at a loop to the table of the held-out seeds.

    Args:
        loop: The trajectories.
        asked: What is searched.
        bars: To show how far it is.
        workers: Who scores; in this process where there are none.
    """

    def __init__(
        self, loop: Loop, asked: Asked, bars: Progress, workers: Workers | None = None
    ) -> None:
        self._loop, self._asked, self._bars = loop, asked, bars
        self._scorer = Scorer(loop, asked.metric)
        self._workers: Workers = workers or InProcess(self._scorer)

    def run(self) -> Tuned:
        """All stages. Ctrl-C from the first trial on ends them, and what is there is kept.

        Raises:
            LoopError, TuneError, OptionError: As `tune`.
        """
        started = time.perf_counter()
        ready = self._prepared()
        problem = Problem(
            space=ready.space,
            costs=ready.costs,
            goals=ready.goals,
            fit=ready.pairs.schedule,
            batches=self._asked.batches,
            metric=self._asked.metric,
        )
        own = Neighbours(ready.space, ready.costs, ready.goals, self._asked.seed)
        study = open_study(
            self._asked.storage, self._description(ready), self._asked.optuna_sampler or own
        )
        search = Search(problem, study, self._workers)
        measured: list[Measured] = []
        found = None
        with suppress(KeyboardInterrupt):
            self._search(search, ready)
            found = list(self._finished(search.scored(), ready, self._refined))
            measured = self._beside(found, ready)
        if found is None:
            found = list(self._finished(search.scored(), ready, self._as_searched))
        return self._tuned(search, study, ready, (found, measured), started)

    # ---- before -------------------------------------------------------------------------------

    def _prepared(self) -> Prepared:
        asked, loop = self._asked, self._loop
        task = self._bars.add_task("measuring and recording", total=None)
        subject = look_at(loop, asked.batches[0].seeds)
        space, costs = measured_space(
            loop, subject, asked, spans_wanted(asked.spans, subject.blocks)
        )
        goals = tuple(self._goals(costs))
        self._check_reach(space, costs, goals)
        self._bars.update(task, total=len(space.spans) * len(asked.batches))
        pairs = recorded(loop, space, asked.batches, lambda: self._bars.advance(task))
        return Prepared(space, costs, pairs, subject.made_for(loop.sampler), goals)

    def _goals(self, costs: Costs) -> Iterator[Goal]:
        asked = self._asked
        for limit in asked.limits:
            share = limit if costs.in_macs else limit / costs.plain
            name = f"{limit:g} of the MACs" if costs.in_macs else f"{limit:g} ms"
            yield Goal(most=min(1.0, share), name=name)
        if asked.target is None:
            return
        value, name = self._target()
        yield Goal(worst=asked.metric.loss(value), name=name)

    def _target(self) -> tuple[float, str]:
        """The value of the metric to keep, and how it is called."""
        target, metric = self._asked.target, self._asked.metric
        if isinstance(target, int | float):
            return float(target), f"{metric.name} of {metric.shown(target)}"
        steps = (target or {})[PLAIN_KEY]
        if steps >= self._loop.steps:
            raise OptionError(PLAIN_KEY, steps, f"fewer than the {self._loop.steps} plain steps")
        tasks = [Task(batch=batch, steps=steps) for batch in self._asked.batches]
        values = [v for _, score in spread(self._workers, tasks) for v in score.values]
        return mean(values), f"as near as {steps} plain steps"

    def _check_reach(self, space: Space, costs: Costs, goals: Iterable[Goal]) -> None:
        """Raise TuneError for a limit below the cheapest schedule there is."""
        cheapest = min(space.spans, key=lambda span: costs.spans[span])
        least = costs.share(table_of((0,), cheapest, space.steps))
        for goal in goals:
            if goal.most < least:
                raise TuneError(
                    f"{goal.name} is a share of {goal.most:.3g}, below the least possible, "
                    f"{least:.3g}: one refresh, and {cheapest} skipped at every other step",
                    "Allow more, or search larger spans",
                )

    def _description(self, ready: Prepared) -> dict[str, Any]:
        """What makes trials comparable with those of another run."""
        plain = [self._scorer.plain(batch).samples for batch in self._asked.batches[:1]]
        return {
            "made for": made_for_content(ready.made_for),
            "spans": table_rows(ready.space.spans),
            "forecasts": list(ready.space.forecasts),
            "seeds": [seed for batch in self._asked.batches for seed in batch.seeds],
            "metric": self._asked.metric.name,
            "unit": ready.costs.unit,
            "spread of the plain samples": [round(float(each.std()), 3) for each in plain],
        }

    # ---- the search ---------------------------------------------------------------------------

    def _search(self, search: Search, ready: Prepared) -> None:
        asked = self._asked
        search.begin_with(first_candidates(ready))
        done = search.done
        task = self._bars.add_task("trials", total=asked.trials, completed=done)
        search.run(asked.trials, asked.seconds, lambda: self._bars.advance(task))

    # ---- after --------------------------------------------------------------------------------

    def _finished(
        self, scored: Sequence[Scored], ready: Prepared, finish: Callable[..., Found | None]
    ) -> Iterator[Found]:
        for goal in ready.goals:
            best = [each for each in goal.ranked(scored) if goal.met(each)][:FINALISTS]
            found = finish(goal, best, ready) if best else None
            if found is not None:
                yield found

    def _as_searched(self, goal: Goal, best: Sequence[Scored], ready: Prepared) -> Found:
        """The best one with the weights it was searched with."""
        schedule = ready.pairs.schedule(best[0].candidate, ready.made_for)
        value = self._asked.metric.loss(best[0].loss)
        return Found(goal=goal.name, schedule=schedule, cost=best[0].cost, value=value)

    def _refined(self, goal: Goal, best: Sequence[Scored], ready: Prepared) -> Found:
        """The best one after another fit of the finalists, each as it is better."""
        task = self._bars.add_task(f"fitting: {goal.name}", total=len(best))
        options = []
        for each in best:
            before = ready.pairs.schedule(each.candidate, ready.made_for)
            after = refined(self._loop, each.candidate, self._asked.batches, before)
            tasks = [Task(schedule=after, batch=batch) for batch in self._asked.batches]
            values = [v for _, score in spread(self._workers, tasks) for v in score.values]
            loss = self._asked.metric.loss(mean(values))
            options.append((each, before))
            options.append((Scored(each.candidate, each.cost, loss), after))
            self._bars.advance(task)
        scored, schedule = min(options, key=lambda option: goal.order(option[0]))
        value = self._asked.metric.loss(scored.loss)
        return Found(goal=goal.name, schedule=schedule, cost=scored.cost, value=value)

    def _beside(self, found: Sequence[Found], ready: Prepared) -> list[Measured]:
        if not self._asked.held_out:
            return []
        self._bars.add_task("held-out seeds", total=None)
        wanted = list(methods(found, ready.space, self._loop.steps))
        return held_out(wanted, self._asked.held_out, self._workers, ready.space, ready.costs)

    def _tuned(
        self,
        search: Search,
        study: Any,
        ready: Prepared,
        outcome: tuple[Sequence[Found], Sequence[Measured]],
        started: float,
    ) -> Tuned:
        trials = [trial for trial in study.get_trials(deepcopy=False) if trial.state in DONE]
        compiles = [trial.user_attrs.get(COMPILES, 0) for trial in trials]
        stopped = sum(not trial.values for trial in trials)
        found, measured = outcome
        loss = self._asked.metric.loss  # its own inverse
        return Tuned(
            found=tuple(found),
            measured=tuple(measured),
            trials=tuple((each.cost, loss(each.loss)) for each in search.scored()),
            missed=tuple(g.name for g in ready.goals if g.name not in {f.goal for f in found}),
            counts=(len(trials) - stopped, stopped),
            compiles=(sum(compiles[:1]), sum(compiles[1:])),
            costs=ready.costs,
            metric=self._asked.metric,
            blocks=ready.space.blocks,
            interrupted=bool(self._asked.held_out) and not measured,
            seconds=time.perf_counter() - started,
        )


def first_candidates(ready: Prepared) -> Iterator[Candidate]:
    """Those of every goal in turn, each goal's most promising first."""
    priors, space = Priors(ready.space, ready.costs, ready.pairs), ready.space
    lists = [list(priors.within(goal.most)) for goal in ready.goals if goal.spends]
    for goal in ready.goals:
        if not goal.spends:  # one for every number of refreshes: where the target lies is not known
            tables = (
                table_of(range(n), space.spans[0], space.steps) for n in range(1, space.steps)
            )
            shares = [ready.costs.share(rows) for rows in tables]
            lists.append([next(iter(priors.within(share))) for share in shares])
    longest = max(map(len, lists), default=0)
    for place in range(longest):
        yield from (some[place] for some in lists if place < len(some))
