"""Stage 7: the Selector, the callable Dynamo gets back. It picks the variant of every call.

For every call it asks what is planned, checks that the deltas a cached step would read are
fresh, and runs the variant: cached, or refresh. It is opaque to Dynamo: it reads Python state,
so switching variants never recompiles.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any, Final, final

import torch

from deltapass.errors import (
    ChangingInputError,
    DeltapassError,
    LoweringError,
    ScheduleError,
    UnsupportedGraphError,
    warn,
)
from deltapass.graph.program import Macs, shown
from deltapass.schedule.rules import Span
from deltapass.selector.call import CallFinder, PlannedCall
from deltapass.selector.freshness import Graph, data_specs, examine, is_as_before, missing
from deltapass.selector.halving import hand_over
from deltapass.selector.later import Mark
from deltapass.selector.model import ModelInfo, Repertoire, weight_watch
from deltapass.selector.observer import Observer
from deltapass.selector.weighing import tensors_of, weighted
from deltapass.sessions.deltas import Doubt, History, Weigh
from deltapass.sessions.report import Cause, Entry
from deltapass.sessions.session import active_session
from deltapass.sessions.streams import use

MAX_CHANGES: Final = 3  # calls in a row with new conditioning before it is said


@final
class Selector:
    """Runs one captured model under its plan; thread-safe, for all state lies in sessions."""

    def __init__(
        self,
        model: ModelInfo,
        variants: Repertoire,
        *,
        constants: Sequence[torch.Tensor] = (),
        strict: bool = False,
    ) -> None:
        """`constants` are handed to every variant after the call's own inputs.

        `marks` keeps the marks on its weights, by which a later graph of the model is known.
        """
        self.model = model
        self.variants = variants
        self.strict = strict
        self.calls = CallFinder(model, variants)
        self._graph = Graph(
            token=object(),
            structure=model.structure,
            specs=data_specs(model.inputs),
            conditioning=model.conditioning,
        )
        self._constants = tuple(constants)
        self._weights = weight_watch(model.inputs)
        self.marks: tuple[Mark, ...] = ()
        self._warned: set[str] = set()

    def __call__(self, *arguments: Any) -> tuple[Any, ...]:
        """Run one call of the model; inputs and outputs are those of the captured graph."""
        started = time.perf_counter()
        try:
            call = self.calls.find(arguments)
        except (UnsupportedGraphError, ScheduleError, LoweringError) as error:
            return self._run_refused(arguments, error, started)
        try:
            return self._run(arguments, call, started)
        except BaseException as error:  # an interrupt must not leave half a delta either
            self._forget(call, arguments, error)
            raise

    def _run(
        self, arguments: tuple[Any, ...], call: PlannedCall, started: float
    ) -> tuple[Any, ...]:
        place, row, lane, log = call[:4]
        doubt = self._doubt(call, arguments)
        planned = row.planned if call.sure else None
        history = lane.histories.get(planned) if planned is not None else None
        if planned is not None:
            doubt = doubt or missing(row, place.step, history)
        if lane.changes >= MAX_CHANGES:
            self._refuse(self._changing(lane.changed))
        if call.refusal is not None:
            self._refuse(call.refusal)
            doubt = Doubt(Cause.REFUSED, str(call.refusal))
        realised = planned if doubt is None and history is not None else None
        try:
            if realised is None or history is None:
                results, macs = self._run_refresh(arguments, call)
            elif call.observer is not None and row.weigh is not None:
                results, macs = self._run_watched(arguments, call, history, call.observer)
            else:
                results, macs = self._run_cached(arguments, call, history, row.weigh)
        except LoweringError as error:  # a session's own schedule may ask for any variant
            realised, doubt = None, Doubt(Cause.REFUSED, str(error))
            results, macs = self._run_full(arguments, call, error)
        if call.last is not None:
            self.calls.note(arguments, results, call.last)
        cause, reason = doubt if doubt is not None else (None, "")
        where = (place.trajectory, place.step, place.branch, planned, realised)
        log.note(*where, cause, reason, _since(started), macs, self.model.macs)
        return results

    def _doubt(self, call: PlannedCall, arguments: tuple[Any, ...]) -> Doubt | None:
        """Why the deltas of the call's branch are worthless, if they are."""
        weights = self._weights.look(arguments, call.lane.weights)
        if is_as_before(call, self._graph, arguments, weights):
            call.lane.last_step = call.place.step
            return None
        if call.row.halves and call.row.planned is not None:
            hand_over(call.lane, self._graph, call.row.planned, self.variants.shapes)
        return examine(call, self._graph, arguments, weights)

    def _changing(self, changed: Sequence[str]) -> ChangingInputError:
        specs = dict(self._graph.specs)
        numbers = [name for name in changed if specs[name].is_number]
        return ChangingInputError(tuple(map(shown, changed)), tuple(map(shown, numbers)))

    def _run_refused(
        self, arguments: tuple[Any, ...], error: DeltapassError, started: float
    ) -> tuple[Any, ...]:
        self._refuse(error)
        variant = self.variants.full()
        results, _ = variant(arguments + self._constants)
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
        self.calls.note_refusal(arguments, entry)
        return results

    def _run_full(
        self, arguments: tuple[Any, ...], call: PlannedCall, error: LoweringError
    ) -> tuple[tuple[Any, ...], Macs]:
        """Run what is lowered already, where the variant that was asked for cannot be."""
        self._refuse(error)
        call.lane.drop(Doubt(Cause.REFUSED, str(error)))
        call.lane.unlowered = error
        variant = self.variants.full()
        results, _ = variant(arguments + self._constants)
        return results, variant.macs

    def _run_refresh(
        self, arguments: tuple[Any, ...], call: PlannedCall
    ) -> tuple[tuple[Any, ...], Macs]:
        lane, row = call.lane, call.row
        lane.keep_only(row.keeps)
        for span, history in lane.histories.items():
            if span in row.emits:  # before what replaces it needs the memory
                history.trim(row.keeps[span] - 1)
        variant = self.variants.refresh(row.emits)
        results, deltas = variant(arguments + self._constants)
        for span in row.emits:
            count = self.variants.streams(span)
            history = lane.histories.setdefault(span, History())
            if row.absorb is not None:
                use(history)
                row.absorb(history, deltas[:count], call.place.step)
            else:
                history.push(deltas[:count], call.place.step, row.keeps[span])
            use(history)  # what is held of older deltas too, which another stream may have made
            deltas = deltas[count:]
        return results, variant.macs

    def _run_cached(
        self,
        arguments: tuple[Any, ...],
        call: PlannedCall,
        history: History,
        weigh: Weigh | None,
    ) -> tuple[tuple[Any, ...], Macs]:
        row = call.row
        use(history)
        buffers = history.deltas[0] if weigh is None else weighted(history, row.taken, weigh)
        call.lane.keep_only(row.keeps)
        variant = self.variants.cached(row.planned or Span(0, 0), row.taken)
        results, _ = variant(arguments + self._constants + buffers)
        return results, variant.macs

    def _run_watched(
        self, arguments: tuple[Any, ...], call: PlannedCall, history: History, observer: Observer
    ) -> tuple[tuple[Any, ...], Macs]:
        """A cached step, or a full one, as an observer wants who is shown the true deltas."""
        row, span = call.row, call.row.planned or Span(0, 0)
        use(history)
        full = self.variants.refresh((span,))
        results, truth = full(arguments + self._constants)
        vectors = observer.weights(call.place, row, history, truth)
        if vectors is None:
            call.lane.keep_only(row.keeps)
            return results, full.macs
        weights = vectors
        return self._run_cached(
            arguments, call, history, lambda _, device: tensors_of(weights, row.taken, device)
        )

    def _forget(self, call: PlannedCall, arguments: Sequence[Any], error: BaseException) -> None:
        """After a failed call nothing of it may be read, and its second try is no new branch."""
        fact = f"a call at step {call.place.step} failed with {type(error).__name__}"
        call.lane.drop(Doubt(Cause.FAILED, fact))
        session = active_session()
        if session is not None:
            session.take_back(self.calls.owner_of(arguments))

    def _refuse(self, error: DeltapassError) -> None:
        """Warn once for each reason, or raise where the user asked for strictness."""
        if self.strict:
            raise error
        if str(error) not in self._warned:
            self._warned.add(str(error))
            warn(f"nothing cached, full graph: {error}")


def _since(started: float) -> float:
    return 1e3 * (time.perf_counter() - started)
