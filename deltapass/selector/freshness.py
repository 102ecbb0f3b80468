"""May a planned cached step read its delta? Every reason why not, in one place.

A delta is read only by the same session, branch, model, graph and weights, under the same
conditioning, at the step the schedule meant it for. Anything else refreshes, and says why.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, final

from deltapass.graph.program import Input, Role, TensorSpec, shown
from deltapass.selector.call import PlannedCall
from deltapass.sessions.changes import are_as_seen, changed_inputs
from deltapass.sessions.deltas import Doubt, History, Lane, Row
from deltapass.sessions.report import Cause
from deltapass.sessions.trajectory import Place
from deltapass.sessions.weights import Weighed, same_weights

LOOKED_AT: Final = (Role.SAMPLE, Role.PER_STEP, Role.DATA)


@final
@dataclass(frozen=True, kw_only=True, slots=True)
class Graph:
    """The parts of a compiled graph that its deltas depend on.

    Attributes:
        token: Stands for the graph, which lanes must not hold.
        structure: Equal for graphs that compute the same: threads that compile one model at once
            get a graph each, and any of them may be called later.
        specs: Name -> spec of its data inputs, the noisy samples first.
        conditioning: Position -> name of the inputs that stay the same along a trajectory.
    """

    token: object
    structure: int
    specs: tuple[tuple[str, TensorSpec], ...]
    conditioning: Mapping[int, str]


def data_specs(inputs: Sequence[Input]) -> tuple[tuple[str, TensorSpec], ...]:
    """Specs of the data inputs but the timestep, the noisy samples first."""
    found = [given for given in inputs if given.role in LOOKED_AT and given.spec]
    found.sort(key=lambda given: given.role is not Role.SAMPLE)
    return tuple((given.name, given.spec) for given in found if given.spec)


def is_as_before(
    call: PlannedCall, graph: Graph, arguments: Sequence[Any], weights: Weighed
) -> bool:
    """Whether a call surely continues the last one of its branch: then its deltas hold.

    The quick question of every call, by identities and versions alone. Where it says no, `examine`
    looks closer, finds the reason if there is one, and brings the lane up to date.
    """
    lane = call.lane
    return (
        lane.weights is weights
        and lane.doubt is None
        and not lane.changes
        and lane.last_step is not None
        and call.place.step - lane.last_step <= 1
        and lane.graph is graph.token
        and are_as_seen(lane.conditioning, arguments)
    )


def examine(
    call: PlannedCall, graph: Graph, arguments: Sequence[Any], weights: Weighed
) -> Doubt | None:
    """Compare a call with the last one of its branch; drop the deltas if they are not for it.

    Args:
        call: What is known about the call; its lane is brought up to date.
        graph: The graph about to run.
        arguments: Inputs of the call.
        weights: How the weights are now.

    Returns:
        Why the deltas were dropped, or were not there to begin with; None if they hold.
    """
    lane = call.lane
    reasons = (
        lane.doubt,
        _other_graph(lane, graph),
        _gap(lane, call.place),
        _other_weights(lane, weights),
        _other_conditioning(lane, graph, arguments, certain=call.certain),
    )
    lane.doubt, lane.last_step, lane.weights = None, call.place.step, weights
    lane.graph, lane.structure, lane.specs = graph.token, graph.structure, graph.specs
    doubt = next((reason for reason in reasons if reason is not None), None)
    if doubt is not None:
        lane.histories = {}
    return doubt


def missing(row: Row, step: int, history: History | None) -> Doubt | None:
    """Why the planned span has no delta of the right age; None if it has, or is a refresh."""
    if row.planned is None:
        return None
    if history is None or not history.deltas:
        return Doubt(Cause.NO_DELTA, f"no refresh kept a {row.planned.keeps} of {row.planned}")
    if not row.fresh_since <= history.at[0] < step:
        fact = f"its {row.planned.keeps} is from step {history.at[0]}, not {row.fresh_since}"
        return Doubt(Cause.SKIPPED, fact)
    return None


def _other_graph(lane: Lane, graph: Graph) -> Doubt | None:
    if lane.graph is None or lane.structure == graph.structure:
        return None
    lane.conditioning.clear()  # positions of the other graph
    before, now = dict(lane.specs), dict(graph.specs)
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


def _gap(lane: Lane, place: Place) -> Doubt | None:
    """A branch that missed a step: the sampler jumped, or guidance was off in between."""
    if lane.last_step is None or place.step - lane.last_step <= 1:
        return None
    if place.before == place.step - 1:
        fact = f"this branch was not called between steps {lane.last_step} and {place.step}"
        return Doubt(Cause.GUIDANCE, fact)
    return Doubt(Cause.SKIPPED, f"went from step {lane.last_step} to {place.step}")


def _other_weights(lane: Lane, weights: Weighed) -> Doubt | None:
    if lane.weights is None or same_weights(lane.weights, weights):
        return None
    return Doubt(Cause.WEIGHTS, "the weights changed")


def _other_conditioning(
    lane: Lane, graph: Graph, arguments: Sequence[Any], *, certain: bool
) -> Doubt | None:
    names = changed_inputs(lane.conditioning, arguments, graph.conditioning, certain=certain)
    lane.changed = names
    lane.changes = lane.changes + 1 if names else 0
    if not names:
        return None
    return Doubt(Cause.CONDITIONING, f"the conditioning changed: {', '.join(map(shown, names))}")
