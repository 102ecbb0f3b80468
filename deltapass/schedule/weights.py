"""Weights that a row of a schedule carries: fitted to a model, rather than given by a predictor."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any, Final, final

from msgspec import Struct, ValidationError, convert

from deltapass.errors import ScheduleError
from deltapass.schedule.predictors import MOST_BUFFERS

Vectors = tuple[tuple[float, ...], ...]
ROW_FORM: Final = "Write null, or 'shared': [[w0, w1]] and perhaps 'branches': {name: [[w0, w1]]}"
FORM: Final = f"Give 1 to {MOST_BUFFERS} numbers a stream, newest delta first, as many for each"


@final
class Weights(Struct, frozen=True, forbid_unknown_fields=True):
    """Weights of the newest deltas of one cached row, newest first.

    Attributes:
        shared: One vector for all streams of the span, or one a stream.
        branches: Branch, as reports call it, and its own vectors, in pairs; others go by `shared`.

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

    def of(self, branch: str, streams: int) -> Vectors:
        """One vector for each of the streams of a span, on one branch.

        Raises:
            ScheduleError: If they are for another number of streams.
        """
        vectors = dict(self.branches).get(branch, self.shared)
        if len(vectors) == 1:
            return vectors * streams
        if len(vectors) != streams:
            fact = f"a row has weights for {len(vectors)} streams, its span has {streams}"
            raise ScheduleError(fact, "Calibrate the schedule on this model")
        return vectors


def weights_content(rows: Sequence[Weights | None]) -> list[Any]:
    """Weights of a table's rows as plain data that `weights_from` reads back equal."""
    return [None if weights is None else _content(weights) for weights in rows]


def _content(weights: Weights) -> dict[str, Any]:
    content: dict[str, Any] = {"shared": _lists(weights.shared)}
    if weights.branches:
        content["branches"] = {branch: _lists(vectors) for branch, vectors in weights.branches}
    return content


def _lists(vectors: Vectors) -> list[list[float]]:
    return [list(vector) for vector in vectors]


def weights_from(content: object) -> tuple[Weights | None, ...]:
    """The weights that plain data describes, a row each.

    Raises:
        ScheduleError: If a key or value in it has no meaning.
    """
    if not isinstance(content, list):
        raise ScheduleError(f"weights is {content!r}", "Give a list with one entry a step")
    return tuple(None if row is None else _weights(step, row) for step, row in enumerate(content))


def _weights(step: int, content: object) -> Weights:
    try:
        given = convert(content, _Written)
    except ValidationError as error:
        raise ScheduleError(f"weights of row {step}: {error}", ROW_FORM) from error
    return Weights(shared=given.shared, branches=tuple(given.branches.items()))


class _Written(Struct, frozen=True, forbid_unknown_fields=True):
    """The weights of one row in a file."""

    shared: Vectors
    branches: dict[str, Vectors] = {}
