"""What was found, on seeds it was not searched on, beside plain steps and the paper's schedule."""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final, final

from deltapass.schedule.explicit import AnySchedule
from deltapass.schedule.presets import delta_dit
from deltapass.tuning.loops import PLAIN
from deltapass.tuning.search.candidates import Space
from deltapass.tuning.search.costs import MACS, Costs
from deltapass.tuning.search.scoring import Batch, Score, Task
from deltapass.tuning.search.tuned import FOUND, LINEAR, PAPER, PLAIN_STEPS, Found, Measured
from deltapass.tuning.search.workers import Workers, spread

SHARES: Final = (0.25, 0.3, 0.35, 0.4, 0.5, 0.65, 0.8)  # of the plain steps that are run too


@final
@dataclass(frozen=True, slots=True)
class Method:
    """One way to sample."""

    name: str
    kind: str
    schedule: AnySchedule
    steps: int | None = None


def methods(found: Sequence[Found], space: Space, asked_steps: int) -> Iterator[Method]:
    """Fewer plain steps, the paper's schedule by both orders, and what was found."""
    counts = {max(1, round(share * asked_steps)) for share in SHARES}
    for count in sorted(count for count in counts if count < asked_steps):
        yield Method(f"{count} plain steps", PLAIN_STEPS, PLAIN, count)
    if space.steps > 1:
        yield Method("paper's schedule", PAPER, delta_dit())
        yield Method("the same, linear", LINEAR, delta_dit(predictor="linear"))
    for each in found:
        yield Method(f"found: {each.goal}", FOUND, each.schedule)


def held_out(
    wanted: Sequence[Method], batches: Sequence[Batch], workers: Workers, space: Space, costs: Costs
) -> list[Measured]:
    """Every method on every batch, spread over the workers."""
    tasks = [
        (method, Task(schedule=method.schedule, batch=batch, steps=method.steps))
        for method in wanted
        for batch in batches
    ]
    scores: dict[int, Score] = dict(spread(workers, [task for _, task in tasks]))
    by_method: dict[Method, list[Score]] = defaultdict(list)
    for place, (method, _) in enumerate(tasks):  # in the order of the seeds
        by_method[method].append(scores[place])
    return [_measured(method, each, space, costs) for method, each in by_method.items()]


def _measured(method: Method, scores: Sequence[Score], space: Space, costs: Costs) -> Measured:
    seconds = statistics.median(score.seconds for score in scores)
    return Measured(
        name=method.name,
        kind=method.kind,
        steps=scores[0].steps,
        cost=_cost(method, scores[0], seconds, space, costs),
        values=tuple(value for score in scores for value in score.values),
        seconds=seconds,
    )


def _cost(method: Method, score: Score, seconds: float, space: Space, costs: Costs) -> float:
    if method.kind == PLAIN_STEPS:
        return costs.plain_share(score.steps)
    rows = method.schedule.table(space.steps, space.blocks)
    if {*rows} <= {None, *costs.spans}:
        return costs.share(rows)
    return score.share if costs.unit == MACS else 1e3 * seconds / costs.plain
