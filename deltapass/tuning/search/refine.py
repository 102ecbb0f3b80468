"""The last fit of what a search found: on its own predictions, by the seeds of the search."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from deltapass.schedule.explicit import ExplicitSchedule
from deltapass.tuning.fit.walk import Sharing, Walk, weighed
from deltapass.tuning.loops import Loop
from deltapass.tuning.search.candidates import Candidate, Forecast
from deltapass.tuning.search.scoring import Batch


def refined(
    loop: Loop, candidate: Candidate, batches: Sequence[Batch], schedule: ExplicitSchedule
) -> ExplicitSchedule:
    """The candidate with weights fitted while walking it, as `deltapass.calibrate` does.

    Those of the search were fitted to plain trajectories, from which a cached one departs.

    Args:
        loop: The trajectories.
        candidate: What was found.
        batches: Seeds to fit on.
        schedule: The candidate with the search's weights; what stays as it is is taken from it.
    """
    forecast = Forecast.named(candidate.forecast)
    if not forecast.fitted or all(row is None for row in candidate.rows):
        return schedule
    walk = Walk(candidate.plain, Sharing(depth=forecast.fitted))
    for batch in batches:
        walk.begin(len(batch.seeds))
        loop.run(batch.seeds, walk.schedule, observer=walk)
    return replace(schedule, weights=weighed(candidate.plain, walk.fits()))
