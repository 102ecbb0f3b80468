"""Stage 7: the Selector, the callable Dynamo gets back. It picks the variant of every call.

For every call it asks what is planned, checks that the deltas a cached step would read are
fresh, and runs the variant: cached, or refresh. It is opaque to Dynamo: it reads Python state,
so switching variants never recompiles.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any, final

import torch

from deltapass.errors import DeltapassError, RefusalWarning, ScheduleError, UnsupportedGraphError
from deltapass.graphs import Role
from deltapass.moments import Moment, find_moments
from deltapass.plan import Plan
from deltapass.report import Entry
from deltapass.schedule import Span
from deltapass.session import History, active_session
from deltapass.variants import Variants


@final
class Selector:
    """Runs one captured model under its plan; thread-safe, for all state lies in sessions."""

    def __init__(self, plan: Plan, variants: Variants, *, strict: bool = False) -> None:
        self.plan = plan
        self.variants = variants
        self.strict = strict
        self.moments = find_moments(plan, variants)
        captured = plan.outline.captured
        self._constants = tuple(captured.constants.values())
        self._weights = tuple(
            at for at, given in enumerate(captured.inputs) if given.role is Role.WEIGHT
        )
        self._warned: set[str] = set()

    def __call__(self, *arguments: Any) -> tuple[Any, ...]:
        """Run one call of the model; inputs and outputs are those of the captured graph."""
        try:
            moment = self.moments.find(self, arguments)
        except (UnsupportedGraphError, ScheduleError) as error:
            return self._run_refused(arguments, error)
        weights = self._weights_version(arguments)
        span, reason = choose(moment, weights)
        if span is not None:
            results = self._run_cached(arguments, moment, span)
        else:
            if moment.state.weights != weights:
                moment.state.clear()  # no prediction may mix the deltas of two sets of weights
            moment.state.weights = weights
            results = self._run_refresh(arguments, moment)
        if moment.entries is not None:
            moment.entries.append(_entry(moment, span, reason))
        return results

    def _run_refused(self, arguments: Sequence[Any], error: DeltapassError) -> tuple[Any, ...]:
        self._refuse(error)
        session = active_session()
        if session is not None:
            session.refused(str(error))
        results, _ = self.variants.refresh(())([*arguments, *self._constants])
        return results

    def _run_refresh(self, arguments: Sequence[Any], moment: Moment) -> tuple[Any, ...]:
        state, keep = moment.state, self.plan.order + 1
        spans = tuple(sorted(moment.emits()))
        state.last_refresh = None  # should this run fail, nothing of it may be read later
        for held in list(state.histories):
            state.histories[held].make_room(keep - 1)
            if moment.keeps is not None and held not in moment.keeps:
                del state.histories[held]
        results, deltas = self.variants.refresh(spans)([*arguments, *self._constants])
        for span in spans:
            count = len(self.variants.span(span).streams)
            state.histories.setdefault(span, History()).push(deltas[:count], moment.step, keep)
            deltas = deltas[count:]
        state.last_refresh = moment.step
        return results

    def _run_cached(self, arguments: Sequence[Any], moment: Moment, span: Span) -> tuple[Any, ...]:
        history = moment.state.histories[span]
        buffers: list[torch.Tensor] = [*history.deltas[0]]
        if self.plan.order:
            buffers += [*history.deltas[-1], _trend(history, moment.step, buffers[0].device)]
        if moment.keeps is not None:
            for held in [held for held in moment.state.histories if held not in moment.keeps]:
                del moment.state.histories[held]
        results, _ = self.variants.cached(span)([*arguments, *self._constants, *buffers])
        return results

    def _weights_version(self, arguments: Sequence[Any]) -> int:
        """Grows with every in-place change of any weight."""
        try:
            return sum([arguments[at]._version for at in self._weights])
        except RuntimeError:  # inference tensors keep no version and cannot be changed outside
            return -1

    def _refuse(self, error: DeltapassError) -> None:
        """Warn once for each reason, or raise where the user asked for strictness."""
        if self.strict:
            raise error
        if str(error) not in self._warned:
            self._warned.add(str(error))
            warnings.warn(f"nothing cached, full graph: {error}", RefusalWarning, stacklevel=3)


def choose(moment: Moment, weights: int) -> tuple[Span | None, str]:
    """The span to skip now, or None for a refresh and why it is not as planned.

    A cached variant runs only on deltas of the same session, branch, model and weights, made by
    the refresh that the schedule planned for them or a later one.
    """
    reason = _obstacle(moment, weights) if moment.planned is not None else ""
    return (None, reason) if reason else (moment.planned, "")


def _obstacle(moment: Moment, weights: int) -> str:
    """Why the planned span cannot be skipped now; empty if it can."""
    state = moment.state
    history = state.histories.get(moment.planned) if moment.planned else None
    if moment.doubt:
        return moment.doubt
    if state.last_refresh is None or history is None or not history.deltas:
        return "this branch has no delta yet"
    if state.weights != weights:
        return "the weights changed"
    if not moment.fresh_since <= history.at[0] < moment.step:
        return f"its delta is from step {history.at[0]}, not {moment.fresh_since}"
    return ""


def _entry(moment: Moment, span: Span | None, reason: str) -> Entry:
    return Entry(
        step=moment.step,
        branch=moment.branch,
        planned=moment.planned,
        realised=span,
        reason=reason,
    )


def _trend(history: History, step: int, device: torch.device) -> torch.Tensor:
    """W of the linear extrapolation d1 + w * (d1 - d0), over step positions.

    With one delta only, d0 is d1 and w is 0: the prediction of order 0.
    """
    newest, before = history.at[0], history.at[-1]
    weight = (step - newest) / (newest - before) if newest != before else 0.0
    return torch.full((), weight, dtype=torch.float32, device=device)
