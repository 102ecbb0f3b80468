"""May a planned cached step read its delta? Every reason why not, in one place.

A delta is read only by the same session, branch, model, graph and weights, under the same
conditioning, at the step the schedule meant it for. Anything else refreshes, and says why.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, final

from deltapass.graph.program import Input, Role, TensorSpec, shown
from deltapass.selector.call import Moment
from deltapass.sessions.changes import changed_inputs
from deltapass.sessions.deltas import BranchState, Doubt, History
from deltapass.sessions.report import Cause
from deltapass.sessions.weights import Weighed, same_weights


@final
@dataclass(frozen=True, kw_only=True, slots=True)
class Graph:
    """What of a compiled graph its deltas depend on.

    Attributes:
        key: The graph itself; held weakly by the states.
        structure: Equal for graphs that compute the same: threads that compile one model at once
            get a graph each, and any of them may be called later.
        specs: Name -> spec of its data inputs, the noisy sample first.
        conditioning: Position -> name of the inputs that stay the same along a trajectory.
    """

    key: Any
    structure: int
    specs: tuple[tuple[str, TensorSpec], ...]
    conditioning: Mapping[int, str]


def data_specs(inputs: Sequence[Input]) -> tuple[tuple[str, TensorSpec], ...]:
    """Specs of the data inputs, the noisy sample first."""
    found = [given for given in inputs if given.role in (Role.SAMPLE, Role.DATA) and given.spec]
    found.sort(key=lambda given: given.role is not Role.SAMPLE)
    return tuple((given.name, given.spec) for given in found if given.spec)


def examine(
    moment: Moment, graph: Graph, arguments: Sequence[Any], weights: Weighed
) -> Doubt | None:
    """Compare a call with the last one of its branch; drop the deltas if they are not for it.

    Args:
        moment: What is known about the call; its state is brought up to date.
        graph: The graph about to run.
        arguments: Inputs of the call.
        weights: How the weights are now.

    Returns:
        Why the deltas were dropped, or were not there to begin with; None if they hold.
    """
    state = moment.state
    reasons = (
        state.doubt,
        _other_graph(state, graph),
        _gap(state, moment),
        _other_weights(state, weights),
        _other_conditioning(state, graph, arguments, moment),
    )
    state.doubt, state.last_step, state.weights = None, moment.step, weights
    state.belong_to(graph.key, graph.specs, graph.structure)
    doubt = next((reason for reason in reasons if reason is not None), None)
    if doubt is not None:
        state.histories = {}
    return doubt


def missing(moment: Moment, history: History | None) -> Doubt | None:
    """Why the planned span has no delta of the right age; None if it has, or is a refresh."""
    if moment.planned is None:
        return None
    if history is None or not history.deltas:
        return Doubt(Cause.NO_DELTA, f"no refresh kept a delta of {moment.planned}")
    if not moment.fresh_since <= history.at[0] < moment.step:
        fact = f"its delta is from step {history.at[0]}, not {moment.fresh_since}"
        return Doubt(Cause.SKIPPED, fact)
    return None


def _other_graph(state: BranchState, graph: Graph) -> Doubt | None:
    if state.graph is None or state.structure == graph.structure:
        return None
    state.conditioning.clear()  # positions of the other graph
    before, now = dict(state.specs), dict(graph.specs)
    for name in [name for name in now if name in before and now[name] != before[name]]:
        old, new = before[name], now[name]
        layout = f" of strides {old.stride}", f" of strides {new.stride}"
        was, became = layout if str(old) == str(new) else ("", "")
        fact = f"{shown(name)} changed from {old}{was} to {new}{became}"
        return Doubt(_difference(old, new), fact)
    return Doubt(Cause.GRAPH, "the model compiled anew: its adapters, arguments or inputs changed")


def _difference(before: TensorSpec, now: TensorSpec) -> Cause:
    if before.dtype != now.dtype:
        return Cause.DTYPE
    if before.device != now.device:
        return Cause.DEVICE
    same_rank = len(before.shape) == len(now.shape)
    batch_alone = same_rank and before.shape[1:] == now.shape[1:] and before.shape != now.shape
    return Cause.BATCH if batch_alone else Cause.SHAPE


def _gap(state: BranchState, moment: Moment) -> Doubt | None:
    """A branch that missed a step: the sampler jumped, or guidance was off in between."""
    if state.last_step is None or moment.step - state.last_step <= 1:
        return None
    if moment.before == moment.step - 1:
        fact = f"this branch was not called between steps {state.last_step} and {moment.step}"
        return Doubt(Cause.GUIDANCE, fact)
    return Doubt(Cause.SKIPPED, f"went from step {state.last_step} to {moment.step}")


def _other_weights(state: BranchState, weights: Weighed) -> Doubt | None:
    if state.weights is None or same_weights(state.weights, weights):
        return None
    return Doubt(Cause.WEIGHTS, "the weights changed")


def _other_conditioning(
    state: BranchState, graph: Graph, arguments: Sequence[Any], moment: Moment
) -> Doubt | None:
    names = changed_inputs(
        state.conditioning, arguments, graph.conditioning, certain=moment.certain
    )
    state.changed = names
    state.changes = state.changes + 1 if names else 0
    if not names:
        return None
    return Doubt(Cause.CONDITIONING, f"the conditioning changed: {', '.join(map(shown, names))}")
