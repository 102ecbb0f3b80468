"""What is searched: the rows of a table and how their deltas are forecast, as optuna's parameters.

A candidate is told in one of two families of parameters: a row for every step, or the paper's rule
with N, N_c and b. Both lead to a table, and two ways to the same table are the same candidate.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Final, final

from deltapass.errors import OptionError
from deltapass.libraries import needs
from deltapass.schedule.explicit import ExplicitSchedule
from deltapass.schedule.files import table_rows
from deltapass.schedule.predictors import MOST_BUFFERS, PREDICTORS, Predictor, predictor_named
from deltapass.schedule.rules import REGIONS, Schedule, Span, Table, region_span

FAMILY: Final = "family"
ROWS, RULE = "rows", "rule"  # the two families
INTERVAL, CACHED, BOUNDARY, FORECAST = "interval", "cached_blocks", "boundary", "forecast"
GREATEST_INTERVAL: Final = 6
FITTED: Final = "fitted-"  # before the number of weights that are fitted
HOLDS: Final = (
    "linear"  # what fitted weights are held by, and what stands in where they do not hold
)
SPAN_FORM: Final = "'full', 'deep:21', 'shallow:21', 'middle:14' or '7:28'"


@final
@dataclass(frozen=True, slots=True)
class Forecast:
    """How cached rows are forecast: by a predictor, or by that many fitted weights."""

    predictor: Predictor
    fitted: int = 0

    @property
    def depth(self) -> int:
        """Deltas a stream that are held."""
        return self.fitted or self.predictor.depth

    @property
    def taken(self) -> int:
        """Weighted deltas a stream that a cached variant takes; 0: the newest, unweighted."""
        return self.fitted or self.predictor.taken

    @classmethod
    def named(cls, name: str) -> Forecast:
        """Of 'linear' or another predictor, or of 'fitted-3'.

        Raises:
            OptionError: If it is none of these.
        """
        found = re.fullmatch(rf"{FITTED}([1-{MOST_BUFFERS}])", name)
        if found is not None:
            return cls(predictor_named(HOLDS), int(found[1]))
        if name not in PREDICTORS:
            allowed = f"one of {', '.join(PREDICTORS)}, {FITTED}1 to {FITTED}{MOST_BUFFERS}"
            raise OptionError(FORECAST, name, allowed)
        return cls(predictor_named(name))


@final
@dataclass(frozen=True, slots=True)
class Candidate:
    """A table and the name of its forecast."""

    rows: Table
    forecast: str

    @property
    def plain(self) -> ExplicitSchedule:
        """As a schedule, with no weights fitted yet."""
        return ExplicitSchedule(self.rows, Forecast.named(self.forecast).predictor.name)

    @property
    def refreshes(self) -> tuple[int, ...]:
        """Steps that refresh, in order."""
        return tuple(step for step, row in enumerate(self.rows) if row is None)

    def made_at(self, step: int) -> tuple[int, ...]:
        """Steps of the refreshes before a step, newest first."""
        return tuple(at for at in reversed(self.refreshes) if at < step)


@final
@dataclass(frozen=True, kw_only=True)
class Space:
    """All candidates that are searched.

    Attributes:
        steps: Steps of the trajectory.
        blocks: Blocks of the model.
        spans: What a cached row may skip.
        forecasts: Names of forecasts.
        rules: Whether the paper's family is searched too.
    """

    steps: int
    blocks: int
    spans: tuple[Span, ...]
    forecasts: tuple[str, ...]
    rules: bool = True

    @cached_property
    def sizes(self) -> tuple[int, ...]:
        """Numbers of blocks N_c that the rule may cache: where both regions are searched."""
        counts = sorted({len(span) for span in self.spans})
        ends = [
            {region_span("deep", n, self.blocks), region_span("shallow", n, self.blocks)}
            for n in counts
        ]
        return tuple(n for n, both in zip(counts, ends, strict=True) if both <= {*self.spans})

    @property
    def families(self) -> tuple[str, ...]:
        """The families that are searched."""
        return (ROWS, RULE) if self.rules and self.sizes else (ROWS,)

    @property
    def steps_that_vary(self) -> range:
        """All steps but the first, which always refreshes."""
        return range(1, self.steps)

    def distributions(self) -> dict[str, Any]:
        """Every parameter of either family, as optuna's distributions."""
        with needs("optuna", "tune"):
            from optuna.distributions import CategoricalDistribution, IntDistribution
        words = tuple(table_rows((None, *self.spans)))
        found: dict[str, Any] = {
            FAMILY: CategoricalDistribution(self.families),
            FORECAST: CategoricalDistribution(self.forecasts),
            **{row_name(step): CategoricalDistribution(words) for step in self.steps_that_vary},
        }
        if RULE in self.families:
            found[INTERVAL] = IntDistribution(2, min(GREATEST_INTERVAL, max(2, self.steps)))
            found[CACHED] = CategoricalDistribution(self.sizes)
            found[BOUNDARY] = IntDistribution(0, self.steps)
        return found

    def names(self, family: str) -> tuple[str, ...]:
        """The parameters of one family, the family's own among them."""
        own = (
            map(row_name, self.steps_that_vary) if family == ROWS else (INTERVAL, CACHED, BOUNDARY)
        )
        return (FAMILY, FORECAST, *own)

    def params(self, candidate: Candidate) -> dict[str, Any]:
        """A candidate as parameters, row by row."""
        words = table_rows(candidate.rows)
        rows = {row_name(step): words[step] for step in self.steps_that_vary}
        return {FAMILY: ROWS, FORECAST: candidate.forecast, **rows}

    def candidate(self, params: Mapping[str, Any]) -> Candidate:
        """What parameters of either family mean."""
        if params[FAMILY] == RULE:
            rows = rule_of(params).table(self.steps, self.blocks)
        else:
            spans: dict[str, Span | None] = dict(
                zip(table_rows((None, *self.spans)), (None, *self.spans), strict=True)
            )
            rows = (None, *(spans[params[row_name(step)]] for step in self.steps_that_vary))
        return Candidate(rows, params[FORECAST])


def rule_of(params: Mapping[str, Any]) -> Schedule:
    """The paper's schedule of some parameters."""
    return Schedule(
        interval=params[INTERVAL], cached_blocks=params[CACHED], boundary=params[BOUNDARY]
    )


def row_name(step: int) -> str:
    """The parameter of one row."""
    return f"row {step}"


def default_spans(blocks: int) -> tuple[Span, ...]:
    """The whole stack; three quarters and one half of it, deep, shallow and in the middle."""
    return tuple(dict.fromkeys(_default_spans(blocks)))


def _default_spans(blocks: int) -> Iterator[Span]:
    yield Span(0, blocks)
    for part in (0.75, 0.5):
        count = max(1, round(blocks * part))
        yield from (region_span(region, count, blocks) for region in REGIONS)


def span_named(text: object, blocks: int) -> Span:
    """A span as it is written: 'full', 'deep:21', '7:28'; or a span itself.

    Raises:
        OptionError: If it is none, or not one of this model.
    """
    if isinstance(text, Span) and text.stop <= blocks:
        return text
    if text == "full":
        return Span(0, blocks)
    found = re.fullmatch(rf"({'|'.join(REGIONS)}|\d+):(\d+)", str(text), re.ASCII)
    allowed = f"{SPAN_FORM}, within {blocks} blocks"
    if found is None:
        raise OptionError("spans", text, allowed)
    region, count = next((r for r in REGIONS if r == found[1]), None), int(found[2])
    start = 0 if region else int(found[1])
    if not (start < count <= blocks):
        raise OptionError("spans", text, allowed)
    return region_span(region, count, blocks) if region else Span(start, count)
