"""Every reason why a delta may not be read, and what the report says of it."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch

from deltapass.graph.program import TensorSpec, shown
from deltapass.schedule.rules import Span
from deltapass.selector.call import PlannedCall
from deltapass.selector.freshness import Graph, examine, missing
from deltapass.sessions.deltas import Doubt, History, Lane, Row
from deltapass.sessions.log import Log
from deltapass.sessions.report import Cause
from deltapass.sessions.trajectory import Place
from deltapass.sessions.weights import same_weights, weigh

DEEP, SHALLOW = Span(2, 6), Span(0, 4)
SAMPLE, TEXT = torch.zeros(2, 16, 4), torch.zeros(2, 5, 8)
WEIGHTS, OTHER_WEIGHTS = ([torch.full((3, 3), of) for _ in range(4)] for of in (1.0, 2.0))
WEIGHED, OTHERS_WEIGHED = weigh(WEIGHTS), weigh(OTHER_WEIGHTS)


def graph(kind: int = 0, **tensors: torch.Tensor) -> Graph:
    """A graph of these inputs, by default a sample and a text; all but the sample condition it.

    Those of one kind and inputs compute the same.
    """
    given = tensors or {"hidden_states": SAMPLE, "text": TEXT}
    return Graph(
        token=object(),
        structure=hash((kind, *given)),
        specs=tuple((name, TensorSpec.of(value)) for name, value in given.items()),
        conditioning={at: name for at, name in enumerate(given) if name != "hidden_states"},
    )


def call(lane: Lane, step: int, before: int | None = None, *, certain: bool = False) -> PlannedCall:
    before = step - 1 if before is None and step else before
    place = Place(0, step, (None, 0), 0, before, lane)
    return PlannedCall(place, row(step), lane, Log(), certain)


def row(step: int) -> Row:
    return Row(DEEP if step % 2 else None, (DEEP,), step - step % 2, frozenset({DEEP}))


def called_at_step_0() -> Lane:
    """The state of a branch that was called at step 0 and left a delta."""
    state = Lane(Doubt(Cause.NEW_TRAJECTORY, "a new trajectory"))
    examine(call(state, 0), graph(), (SAMPLE, TEXT), WEIGHED)
    state.histories[DEEP] = History([(torch.zeros(4),)], (0,))
    return state


def ask(state: Lane, step: int = 1, **changed: Any) -> Doubt | None:
    """Why the call at this step may not read; everything is as at step 0 but for what changed."""
    before = changed.get("before")
    arguments = changed.get("arguments", (SAMPLE, TEXT))
    which, weights = changed.get("graph", graph()), changed.get("weights", WEIGHED)
    return examine(call(state, step, before), which, arguments, weights)


# ---- one reason at a time ----------------------------------------------------------------------


def test_first_call_says_why_there_is_no_delta() -> None:
    origin = Doubt(Cause.BACK, "went back from step 3 to 0")
    state = Lane(origin)
    assert ask(state, step=0) == origin
    assert state.doubt is None, "it is said once"
    assert ask(state, step=1) is None


def test_nothing_changed() -> None:
    state = called_at_step_0()
    assert ask(state) is None
    assert missing(row(1), 1, state.histories[DEEP]) is None
    assert state.nbytes == 16


OTHERS: dict[str, tuple[Cause, dict[str, Any], str]] = {
    "batch": (
        Cause.BATCH,
        {"graph": graph(1, hidden_states=torch.zeros(1, 16, 4), text=torch.zeros(1, 5, 8))},
        "hidden_states changed from float32[2, 16, 4] to float32[1, 16, 4]",
    ),
    "shape": (
        Cause.SHAPE,
        {"graph": graph(1, hidden_states=torch.zeros(2, 25, 4), text=TEXT)},
        "hidden_states changed from float32[2, 16, 4] to float32[2, 25, 4]",
    ),
    "rank": (
        Cause.SHAPE,
        {"graph": graph(1, hidden_states=torch.zeros(2, 4, 4, 4), text=TEXT)},
        "hidden_states changed from float32[2, 16, 4] to float32[2, 4, 4, 4]",
    ),
    "shape of the text": (
        Cause.SHAPE,
        {"graph": graph(1, hidden_states=SAMPLE, text=torch.zeros(2, 9, 8))},
        "text changed from float32[2, 5, 8] to float32[2, 9, 8]",
    ),
    "dtype": (
        Cause.DTYPE,
        {"graph": graph(1, hidden_states=SAMPLE.half(), text=TEXT.half())},
        "hidden_states changed from float32[2, 16, 4] to float16[2, 16, 4]",
    ),
    "device": (
        Cause.DEVICE,
        {"graph": graph(1, hidden_states=SAMPLE.to("meta"), text=TEXT.to("meta"))},
        "",
    ),
    "inputs": (
        Cause.GRAPH,
        {"graph": graph(1, hidden_states=SAMPLE, text=TEXT, pose=TEXT)},
        "the model compiled anew",
    ),
    "skipped": (Cause.SKIPPED, {"step": 3, "before": 0}, "went from step 0 to 3"),
    "guidance": (
        Cause.GUIDANCE,
        {"step": 3, "before": 2},
        "this branch was not called between steps 0 and 3",
    ),
    "weights": (Cause.WEIGHTS, {"weights": OTHERS_WEIGHED}, "the weights changed"),
    "conditioning": (
        Cause.CONDITIONING,
        {"arguments": (SAMPLE, TEXT + 1)},
        "the conditioning changed: text",
    ),
}


def with_arguments(
    cause: Cause, changed: dict[str, Any], reason: str
) -> tuple[Cause, dict[str, Any], str]:
    """With arguments that fit another graph."""
    if "graph" in changed:
        shapes = [spec.shape for _, spec in changed["graph"].specs]
        changed = {**changed, "arguments": tuple(map(torch.zeros, shapes))}
    return cause, changed, reason


@pytest.mark.parametrize("other", OTHERS)
def test_what_changed_is_the_cause_and_the_deltas_are_dropped(other: str) -> None:
    cause, changed, reason = with_arguments(*OTHERS[other])
    state = called_at_step_0()
    doubt = ask(state, **changed)
    assert doubt is not None
    assert doubt.cause is cause
    assert reason in doubt.reason
    assert state.nbytes == 0


@pytest.mark.parametrize("other", OTHERS)
def test_what_has_changed_once_is_the_same_from_then_on(other: str) -> None:
    _, changed, _ = with_arguments(*OTHERS[other])
    state = called_at_step_0()
    ask(state, **changed)
    again = {key: value for key, value in changed.items() if key != "before"}
    assert ask(state, **{**again, "step": changed.get("step", 1) + 1}) is None


def test_another_layout_is_told_from_another_shape() -> None:
    turned = torch.zeros(2, 4, 16).mT
    other = graph(1, hidden_states=turned, text=TEXT)
    doubt = ask(called_at_step_0(), graph=other, arguments=(turned, TEXT))
    assert doubt is not None
    before, _, now = doubt.reason.removeprefix("hidden_states changed from ").partition(" to ")
    assert before != now


def test_a_doubt_of_the_state_comes_first_but_everything_is_seen() -> None:
    state = called_at_step_0()
    state.drop(Doubt(Cause.FAILED, "a call failed"))
    doubt = ask(state, step=3, before=0, weights=OTHERS_WEIGHED, arguments=(SAMPLE, TEXT + 1))
    assert doubt == (Cause.FAILED, "a call failed")
    assert ask(state, step=4, weights=OTHERS_WEIGHED, arguments=(SAMPLE, TEXT + 1)) is None


def test_a_graph_made_anew_reads_what_one_of_the_same_structure_left() -> None:
    state = called_at_step_0()
    assert ask(state, graph=graph()) is None
    assert state.nbytes == 16
    doubt = ask(state, step=2, graph=graph(1))
    assert doubt is not None
    assert doubt.cause is Cause.GRAPH
    assert state.nbytes == 0


@pytest.mark.parametrize("changes", list(itertools.product([False, True], repeat=4)))
def test_changes_of_conditioning_in_a_row_are_counted(changes: tuple[bool, ...]) -> None:
    state, value, expected = called_at_step_0(), 0, 0
    for step, changed in enumerate(changes, 1):
        value, expected = value + changed, expected + 1 if changed else 0
        ask(state, step=step, arguments=(SAMPLE, TEXT + value))
        assert state.changes == expected
        assert state.changed == (("text",) if changed else ())


# ---- the delta of the planned span -------------------------------------------------------------


@pytest.mark.parametrize(
    ("planned", "at", "since", "cause"),
    [
        (None, (), 0, None),
        (DEEP, (2,), 2, None),
        (DEEP, (2, 0), 2, None),
        (DEEP, (), 2, Cause.NO_DELTA),
        (SHALLOW, (2,), 2, Cause.NO_DELTA),
        (DEEP, (0,), 2, Cause.SKIPPED),
        (DEEP, (3,), 2, Cause.SKIPPED),  # made at this very step, by another call
    ],
)
def test_delta_must_be_of_the_planned_span_and_from_the_planned_refresh(
    planned: Span | None, at: tuple[int, ...], since: int, cause: Cause | None
) -> None:
    histories = {DEEP: History([(torch.zeros(1),) for _ in at], at)}
    history = histories.get(planned) if planned else None
    doubt = missing(Row(planned, (), since, {}), 3, history)
    assert (doubt.cause if doubt else None) is cause


@pytest.mark.parametrize(
    ("name", "as_known"),
    [
        ("encoder_hidden_states", "encoder_hidden_states"),
        ("L_kwargs_pose_", "pose"),
        ("l_pose_", "pose"),
        ("l_args_0_", "0"),
    ],
)
def test_inputs_are_named_as_the_user_knows_them(name: str, as_known: str) -> None:
    assert shown(name) == as_known


# ---- weights -----------------------------------------------------------------------------------


def some_weights() -> list[torch.Tensor]:
    return [torch.nn.Parameter(torch.rand(3, 3), requires_grad=False) for _ in range(4)]


def replace(weights: list[torch.Tensor]) -> None:
    weights[2].data = torch.ones(3, 3)


def exchange(weights: list[torch.Tensor]) -> None:
    weights[1].data, weights[2].data = weights[2].data, weights[1].data


WAYS: dict[str, Callable[[list[torch.Tensor]], Any]] = {
    "in place": lambda weights: weights[2].mul_(2),
    "new tensor": lambda weights: weights.__setitem__(2, weights[2] + 1),
    "fewer": lambda weights: weights.pop(),
    "data": replace,
    "exchanged": exchange,
}


@pytest.mark.parametrize("inference", [False, True])
@pytest.mark.parametrize("way", WAYS)
def test_changed_weights_are_not_the_same(way: str, inference: bool) -> None:
    if inference and way == "in place":
        pytest.skip("nothing counts it")
    with torch.inference_mode(inference):
        weights = some_weights()
        before = weigh(weights)
        assert same_weights(before, weigh(weights))
        WAYS[way](weights)
        assert not same_weights(before, weigh(weights))
        assert same_weights(weigh(weights), weigh(weights))


def test_models_may_have_one_weight_or_none() -> None:
    assert same_weights(weigh(()), weigh(()))
    weight = torch.ones(2)
    assert same_weights(weigh((weight,)), weigh((weight,)))
