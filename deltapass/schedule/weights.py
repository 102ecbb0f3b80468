"""Weights that a row of a schedule carries: fitted to a model, rather than given by a predictor."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Final, final

from msgspec import Struct

from deltapass.errors import ScheduleError
from deltapass.schedule.predictors import MOST_BUFFERS

Vectors = tuple[tuple[float, ...], ...]
FORM: Final = f"Give 1 to {MOST_BUFFERS} numbers a stream, newest delta first, as many for each"


@final
class Weights(Struct, frozen=True, forbid_unknown_fields=True):
    """Weights of the newest deltas of one cached row, newest first.

    Attributes:
        shared: One vector for all streams of the span, or one a stream.
        branches: Name of a branch -> its own vectors, as pairs; others go by `shared`.

    Raises:
        ScheduleError: If the vectors are empty, of unequal length, or not finite.
    """

    shared: Vectors
    branches: tuple[tuple[str, Vectors], ...] = ()

    def __post_init__(self) -> None:
        for vectors in self._all():
            lengths = {len(vector) for vector in vectors}
            fits = len(lengths) == 1 and 1 <= min(lengths) <= MOST_BUFFERS
            if not fits or not all(math.isfinite(w) for vector in vectors for w in vector):
                raise ScheduleError(f"weights are {vectors!r}", FORM)
        if len({len(vectors[0]) for vectors in self._all()}) > 1:
            raise ScheduleError("weights of branches differ in number", FORM)

    def _all(self) -> Iterator[Vectors]:
        yield self.shared
        yield from (vectors for _, vectors in self.branches)

    @property
    def depth(self) -> int:
        """How many of the newest deltas are read."""
        return len(self.shared[0])

    def of(self, branch: object, streams: int) -> Vectors:
        """One vector for each of the streams of a span, on one branch.

        Raises:
            ScheduleError: If they are for another number of streams.
        """
        vectors = dict(self.branches).get(str(branch), self.shared)
        if len(vectors) == 1:
            return vectors * streams
        if len(vectors) != streams:
            fact = f"a row has weights for {len(vectors)} streams, its span has {streams}"
            raise ScheduleError(fact, "Calibrate the schedule on this model")
        return vectors
