"""Stage 7: the Selector, the callable Dynamo gets back. It picks the variant of every call.

For every call it asks what is planned, checks that the deltas a cached step would read are
fresh, and runs the variant: cached, or refresh. It is opaque to Dynamo: it reads Python state,
so switching variants never recompiles.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Sequence
from operator import itemgetter
from typing import Any, Final, final

import torch

from deltapass.errors import (
    ChangingInputError,
    DeltapassError,
    RefusalWarning,
    ScheduleError,
    StepUnknownError,
    UnsupportedGraphError,
)
from deltapass.graph.program import Macs, Role, shown
from deltapass.schedule.rules import Span
from deltapass.selector.call import Moment, find_moments
from deltapass.selector.freshness import Graph, data_specs, examine, missing
from deltapass.selector.model import Facts, Repertoire
from deltapass.sessions.deltas import Doubt, History
from deltapass.sessions.report import Cause, Entry
from deltapass.sessions.session import active_session
from deltapass.sessions.weights import weigh

MAX_CHANGES: Final = 3  # calls in a row with new conditioning before it is said
MANY_STARTS: Final = 100  # first steps in a row without a second one before it is said


@final
class Selector:
    """Runs one captured model under its plan; thread-safe, for all state lies in sessions."""

    def __init__(
        self,
        facts: Facts,
        variants: Repertoire,
        *,
        constants: Sequence[torch.Tensor] = (),
        strict: bool = False,
    ) -> None:
        """`constants` are handed to every variant after the call's own inputs."""
        self.facts = facts
        self.variants = variants
        self.strict = strict
        self.moments = find_moments(facts, variants)
        self._graph = Graph(
            key=self,
            structure=facts.structure,
            specs=data_specs(facts.inputs),
            conditioning=facts.conditioning,
        )
        self._constants = tuple(constants)
        weights = [at for at, given in enumerate(facts.inputs) if given.role is Role.WEIGHT]
        self._weights: Callable[[Sequence[Any]], Any] = _picker(weights)
        self._warned: set[str] = set()

    def __call__(self, *arguments: Any) -> tuple[Any, ...]:
        """Run one call of the model; inputs and outputs are those of the captured graph."""
        started = time.perf_counter()
        try:
            moment = self.moments.find(arguments)
        except (UnsupportedGraphError, ScheduleError) as error:
            return self._run_refused(arguments, error, started)
        try:
            return self._run(arguments, moment, started)
        except BaseException as error:  # an interrupt must not leave half a delta either
            self._forget(moment, arguments, error)
            raise

    def _run(self, arguments: Sequence[Any], moment: Moment, started: float) -> tuple[Any, ...]:
        weights = weigh(self._weights(arguments))
        doubt = examine(moment, self._graph, arguments, weights)
        history = moment.state.histories.get(moment.planned) if moment.planned else None
        doubt = doubt or missing(moment, history)
        self._say_what_never_caches(moment)
        span = None if doubt is not None else moment.planned
        if span is None or history is None:
            results, macs = self._run_refresh(arguments, moment)
        else:
            results, macs = self._run_cached(arguments, moment, history)
        moment.entries.append(_entry(moment, span, doubt, (macs, self.facts.macs), started))
        return results

    def _say_what_never_caches(self, moment: Moment) -> None:
        if moment.state.changes == MAX_CHANGES:
            self._refuse(ChangingInputError(tuple(map(shown, moment.state.changed))))
        if self.moments.starts == MANY_STARTS:
            fact = "each began a trajectory: random timesteps, or a thread or task for every call"
            self._refuse(StepUnknownError(f"of the last {MANY_STARTS} calls {fact}"))

    def _run_refused(
        self, arguments: Sequence[Any], error: DeltapassError, started: float
    ) -> tuple[Any, ...]:
        self._refuse(error)
        variant = self.variants.refresh(())
        results, _ = variant([*arguments, *self._constants])
        entry = Entry(
            step=None,
            planned=None,
            realised=None,
            cause=Cause.REFUSED,
            reason=str(error),
            milliseconds=_since(started),
            macs=variant.macs,
            full_macs=variant.macs,
        )
        self.moments.note_refusal(arguments, entry)
        return results

    def _run_refresh(
        self, arguments: Sequence[Any], moment: Moment
    ) -> tuple[tuple[Any, ...], Macs]:
        state, keep = moment.state, self.facts.order + 1
        spans = tuple(sorted(moment.emits()))
        state.keep_only(moment.keeps)
        for history in state.histories.values():
            history.make_room(keep - 1)
        variant = self.variants.refresh(spans)
        results, deltas = variant([*arguments, *self._constants])
        for span in spans:
            count = self.variants.streams(span)
            state.histories.setdefault(span, History()).push(deltas[:count], moment.step, keep)
            deltas = deltas[count:]
        return results, variant.macs

    def _run_cached(
        self, arguments: Sequence[Any], moment: Moment, history: History
    ) -> tuple[tuple[Any, ...], Macs]:
        buffers: list[torch.Tensor] = [*history.deltas[0]]
        if self.facts.order:
            buffers += [*history.deltas[-1], _trend(history, moment.step, buffers[0].device)]
        moment.state.keep_only(moment.keeps)
        variant = self.variants.cached(moment.planned or Span(0, 0))
        results, _ = variant([*arguments, *self._constants, *buffers])
        return results, variant.macs

    def _forget(self, moment: Moment, arguments: Sequence[Any], error: BaseException) -> None:
        """After a failed call nothing of it may be read, and its second try is no new branch."""
        fact = f"a call at step {moment.step} failed with {type(error).__name__}"
        moment.state.drop(Doubt(Cause.FAILED, fact))
        session = active_session()
        if session is not None:
            session.take_back(self.moments.owner_of(arguments))

    def _refuse(self, error: DeltapassError) -> None:
        """Warn once for each reason, or raise where the user asked for strictness."""
        if self.strict:
            raise error
        if str(error) not in self._warned:
            self._warned.add(str(error))
            warnings.warn(f"nothing cached, full graph: {error}", RefusalWarning, stacklevel=3)


def _picker(positions: Sequence[int]) -> Callable[[Sequence[Any]], Any]:
    """Picks the arguments at some positions, as a tuple."""
    if len(positions) > 1:
        return itemgetter(*positions)
    return lambda arguments: tuple(arguments[at] for at in positions)


def _since(started: float) -> float:
    return 1e3 * (time.perf_counter() - started)


def _entry(
    moment: Moment,
    span: Span | None,
    doubt: Doubt | None,
    macs: tuple[Macs, Macs],
    started: float,
) -> Entry:
    return Entry(
        trajectory=moment.trajectory,
        step=moment.step,
        branch=moment.branch,
        planned=moment.planned,
        realised=span,
        cause=doubt.cause if doubt else None,
        reason=doubt.reason if doubt else "",
        milliseconds=_since(started),
        macs=macs[0],
        full_macs=macs[1],
    )


def _trend(history: History, step: int, device: torch.device) -> torch.Tensor:
    """W of the linear extrapolation d1 + w * (d1 - d0), over step positions.

    With one delta only, d0 is d1 and w is 0: the prediction of order 0.
    """
    newest, before = history.at[0], history.at[-1]
    weight = (step - newest) / (newest - before) if newest != before else 0.0
    return torch.full((), weight, dtype=torch.float32, device=device)
