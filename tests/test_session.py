"""Sessions: what a step and a branch are, and what is forgotten when."""

from __future__ import annotations

import pytest
import torch

import deltapass
from deltapass.errors import NoStepError, StateError, StepOutsideError
from deltapass.session import BranchState, History, active_session


class Model:
    """A key for the states of one compiled model."""


def test_history_keeps_the_newest_deltas_first() -> None:
    history = History()
    for step in (0, 2, 4):
        history.push((torch.full((1,), float(step)),), step, keep=2)
    assert history.at == [4, 2]
    assert [deltas[0].item() for deltas in history.deltas] == [4.0, 2.0]


def test_making_room_lets_go_of_the_oldest() -> None:
    history = History()
    history.push((torch.zeros(1),), 0, keep=2)
    history.push((torch.zeros(1),), 2, keep=2)
    history.make_room(1)
    assert history.at == [2]


def test_branch_state_counts_its_bytes() -> None:
    state = BranchState()
    state.histories[deltapass.Span(0, 1)] = History([(torch.zeros(3), torch.zeros(2))], [0])
    assert state.nbytes == 20
    state.clear()
    assert state.nbytes == 0


def test_sessions_nest_and_the_inner_one_is_active() -> None:
    assert active_session() is None
    with deltapass.session(steps=2) as outer:
        with deltapass.session(steps=3) as inner:
            assert active_session() is inner
        assert active_session() is outer
    assert active_session() is None


def test_call_before_the_first_step_is_an_error() -> None:
    with deltapass.session(steps=2) as session, pytest.raises(NoStepError, match=r"session\.step"):
        session.place(Model())


@pytest.mark.parametrize("index", [-1, 4, True])
def test_step_outside_the_session_is_an_error(index: int) -> None:
    session = deltapass.session(steps=4)
    with pytest.raises(StepOutsideError, match="0 to 3"):
        session.step(index)


@pytest.mark.parametrize("steps", [0, -3, 2.5, True])
def test_session_needs_a_number_of_steps(steps: int) -> None:
    with pytest.raises(StateError, match="1 or more"):
        deltapass.session(steps=steps)


def test_second_call_within_a_step_is_another_branch() -> None:
    session, model = deltapass.session(steps=2), Model()
    session.step(0)
    first, second = session.place(model)[1], session.place(model)[1]
    session.step(1)
    assert first != second
    assert session.place(model)[1] == first


def test_repeated_step_without_a_branch_is_another_branch() -> None:
    session, model = deltapass.session(steps=2), Model()
    session.step(0)
    first = session.place(model)
    session.step(0)
    assert session.place(model) != first


def test_named_branches_are_kept_apart() -> None:
    session, model = deltapass.session(steps=2), Model()
    session.step(0, branch="cond")
    cond = session.place(model)[1]
    session.step(0, branch="uncond")
    assert session.place(model)[1] != cond
    session.step(1, branch="cond")
    assert session.place(model)[1] == cond


def test_leaving_a_session_frees_its_deltas() -> None:
    model = Model()
    with deltapass.session(steps=2) as session:
        state = session.state(model, None)
        state.histories[deltapass.Span(0, 1)] = History([(torch.zeros(4),)], [0])
        assert session.nbytes == 16
    assert session.nbytes == 0


def test_going_back_to_the_first_step_starts_a_new_trajectory() -> None:
    session, model = deltapass.session(steps=4), Model()
    session.step(0)
    session.state(model, None).histories[deltapass.Span(0, 1)] = History([(torch.zeros(4),)], [0])
    session.step(1)
    session.step(0)
    assert session.nbytes == 0


def test_states_of_a_model_that_is_gone_are_freed() -> None:
    session, model = deltapass.session(steps=2), Model()
    session.state(model, None).histories[deltapass.Span(0, 1)] = History([(torch.zeros(4),)], [0])
    del model
    assert session.nbytes == 0
