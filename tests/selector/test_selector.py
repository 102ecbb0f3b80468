"""The selector: a cached variant never runs on a delta that is not its own and fresh."""

from __future__ import annotations

import contextlib
import contextvars
import copy
import gc
import threading
import warnings
import weakref
from typing import Any
from unittest.mock import patch

import pytest
import torch
from deltapass.backends.eager import EagerLowering
from driving import compiled, follow, oracle, sampled, tensors
from models import make, noise
from reference import Call

import deltapass
import deltapass.errors
from deltapass.compiler.variants import Variants
from deltapass.errors import LoweringError, RefusalWarning, StepUnknownError
from deltapass.graph.executable import Executable
from deltapass.schedule.explicit import ExplicitSchedule
from deltapass.schedule.rules import Span
from deltapass.selector.call import MANY_STARTS
from deltapass.sessions.deltas import History
from deltapass.sessions.report import Cause

STEPS = 8
SCHEDULE = {"cached_blocks": 4, "boundary": 0.5}
DEEP = Span(2, 6)


def calls_of(toy: Any, shift: int = 0, steps: int = STEPS) -> list[Call]:
    given = [toy.inputs(999.0 * (1 - step / steps), step + shift) for step in range(steps)]
    return sampled(given)


def run(model: Any, calls: list[Call]) -> list[torch.Tensor]:
    with deltapass.session(steps=len(calls)) as session:
        return tensors(follow(model, calls, session))


def same(one: list[torch.Tensor], other: list[torch.Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


@pytest.fixture
def toy() -> Any:
    return make("adaln")


def test_interleaved_sessions_give_what_they_give_alone(toy: Any) -> None:
    model = compiled(toy, **SCHEDULE)
    trajectories = [calls_of(toy, shift) for shift in (0, 100, 200)]
    alone = [run(model, calls) for calls in trajectories]
    sessions = [deltapass.session(steps=STEPS) for _ in trajectories]
    together: list[list[torch.Tensor]] = [[] for _ in trajectories]
    for step in range(STEPS):
        for which, session in enumerate(sessions):
            args, kwargs = trajectories[which][step]
            with torch.no_grad(), session.at(step):
                together[which].append(tensors([model(*args, **kwargs)])[0])
    assert all(same(a, t) for a, t in zip(alone, together, strict=True))


def test_threads_without_sessions_do_not_meet(toy: Any) -> None:
    model = compiled(toy, **SCHEDULE)
    trajectories = [calls_of(toy, shift) for shift in (0, 100, 200)]
    alone = [tensors(follow(model, calls)) for calls in trajectories]
    results: dict[int, list[torch.Tensor]] = {}
    barrier = threading.Barrier(len(trajectories))

    def work(which: int) -> None:
        barrier.wait()
        results[which] = tensors(follow(model, trajectories[which]))

    threads = [threading.Thread(target=work, args=(at,)) for at in range(len(trajectories))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(same(alone[at], results[at]) for at in range(len(trajectories)))


@pytest.mark.parametrize("start", [0, 1, 4])
@pytest.mark.parametrize("stop_at", [1, 2, 4, 6])
def test_aborted_trajectory_does_not_touch_the_next(toy: Any, stop_at: int, start: int) -> None:
    """The next one may begin at any timestep, also one that would go on the one aborted."""
    model, calls = compiled(toy, **SCHEDULE), calls_of(toy)[start:]
    alone = tensors(follow(compiled(copy.deepcopy(toy), **SCHEDULE), calls))
    follow(model, calls_of(toy, shift=100)[:stop_at])
    assert same(tensors(follow(model, calls)), alone)
    assert deltapass.last_report(model).calls == len(calls)


def test_interleaved_requests_without_sessions_never_read_each_others_deltas(toy: Any) -> None:
    """With steps of their own, one ahead of the other: nothing is cached, and it is said."""
    model = compiled(toy, **SCHEDULE)
    one, other = calls_of(toy, steps=20), calls_of(toy, shift=100, steps=24)
    calls = [call for pair in zip(one, other[3:], strict=False) for call in pair]
    with pytest.warns(deltapass.RefusalWarning, match="requests that take turns") as caught:
        outputs = tensors(follow(model, calls))
    assert len(caught) == 1
    assert same(outputs, tensors(follow(toy, calls)))


def test_scoring_at_random_timesteps_is_never_cached(toy: Any) -> None:
    """With one sample for all, and with noise of its own for each."""
    model, times = compiled(toy, **SCHEDULE), torch.rand(120, generator=torch.manual_seed(3)) * 999
    (sample, _), _ = toy.inputs(0.0, 7)
    fixed = [((sample, torch.full((2,), float(time))), {}) for time in times]
    drawn = [toy.inputs(float(time), at) for at, time in enumerate(times)]
    for calls in (fixed, drawn):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", deltapass.RefusalWarning)
            outputs = tensors(follow(model, calls))
        assert same(outputs, tensors(follow(toy, calls)))


def test_strict_raises_at_every_refused_call_and_at_no_other(toy: Any) -> None:
    model = compiled(toy, strict=True, **SCHEDULE)
    with torch.no_grad():
        for at in range(MANY_STARTS - 1):
            model(*toy.inputs(999.0, at)[0])
        for at in range(3):
            with pytest.raises(StepUnknownError, match="had four steps"):
                model(*toy.inputs(999.0, at)[0])
    run(model, calls_of(toy))  # what happened outside is nothing to a session
    in_a_thread = threading.Thread(target=follow, args=(model, calls_of(toy)))
    in_a_thread.start()  # nor to another thread
    in_a_thread.join()
    with pytest.raises(StepUnknownError):
        follow(model, calls_of(toy))


def test_a_thread_for_every_call_is_said(toy: Any) -> None:
    model, said = compiled(toy, **SCHEDULE), []

    def once(call: Call) -> None:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            follow(model, [call])
        said.extend(str(one.message) for one in caught)

    for call in calls_of(toy, steps=MANY_STARTS + 2):
        thread = threading.Thread(target=once, args=(call,))
        thread.start()
        thread.join()
    assert len(said) == 1
    assert "a thread or task for every call" in said[0]


def test_many_threads_that_start_at_once_are_not_said_to_be_one_a_call(toy: Any) -> None:
    model, calls = compiled(toy, strict=True, **SCHEDULE), calls_of(toy)
    follow(model, calls[:1])
    barrier, failed = threading.Barrier(MANY_STARTS + 4), []

    def work() -> None:
        for call in calls[:2]:
            barrier.wait()
            try:
                follow(model, [call])
            except StepUnknownError as error:
                failed.append(error)

    threads = [threading.Thread(target=work) for _ in range(barrier.parties)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed


@pytest.mark.parametrize("explicit", [True, False])
def test_strict_raises_at_every_call_whose_conditioning_has_changed(explicit: bool) -> None:
    toy = make("two_stream")
    model = compiled(toy, strict=True, **SCHEDULE)
    calls = [
        (args, {"encoder_hidden_states": kwargs["encoder_hidden_states"] + at})
        for at, (args, kwargs) in enumerate(calls_of(toy))
    ]
    refused = []
    with deltapass.session(steps=STEPS) if explicit else contextlib.nullcontext() as session:
        for at, (args, kwargs) in enumerate(calls):
            if explicit:
                session.step(at)
            try:
                follow(model, [(args, kwargs)])
            except deltapass.errors.ChangingInputError:
                refused.append(at)
    assert refused == [3, 4, 5, 6, 7]


def test_weights_changed_in_mid_trajectory_refresh(toy: Any) -> None:
    model = compiled(toy, **SCHEDULE)
    calls = calls_of(toy)
    with deltapass.session(steps=STEPS) as session:
        follow(model, calls[:1], session)
        with torch.no_grad():
            next(iter(toy.parameters())).mul_(1.1)
            session.step(1)
            out = model(*calls[1][0], **calls[1][1])
            assert torch.equal(out, toy(*calls[1][0], **calls[1][1]))
        assert session.report().entries[-1].reason == "the weights changed"


def new_data(toy: Any) -> None:
    toy.blocks[4].mlp[0].weight.data = noise(7, 64, 32)


def loaded(toy: Any) -> None:
    changed = {name: 1.1 * value for name, value in toy.state_dict().items()}
    toy.load_state_dict(changed, assign=True)


@pytest.mark.parametrize("explicit", [True, False])
@pytest.mark.parametrize("change", [new_data, loaded])
@torch.no_grad()
def test_weights_replaced_in_mid_trajectory_refresh(change: Any, explicit: bool) -> None:
    toy = make("adaln")
    model, calls = compiled(toy, **SCHEDULE), calls_of(toy)
    with deltapass.session(steps=STEPS) if explicit else contextlib.nullcontext() as session:
        follow(model, calls[:1], session)
        change(toy)
        outputs = _from(model, calls, session, 1) if explicit else follow(model, calls[1:2])
        assert torch.equal(tensors(outputs)[0], tensors(follow(toy, calls[1:2]))[0])
        assert not explicit or session.entries[1].forced


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
@pytest.mark.parametrize("explicit", [True, False])
@torch.no_grad()
def test_call_that_failed_can_be_tried_again(
    toy: Any, error: type[BaseException], explicit: bool
) -> None:
    model, calls = compiled(toy, **SCHEDULE), calls_of(toy)
    with deltapass.session(steps=STEPS) if explicit else contextlib.nullcontext() as session:
        follow(model, calls[:3], session)
        if explicit:
            session.step(3)
        with patch.object(Executable, "__call__", side_effect=error), pytest.raises(error):
            model(*calls[3][0])
        outputs = [model(*calls[3][0]), *(_from(model, calls, session, 4) if explicit else [])]
        if explicit:
            last = session.entries[-3:]
            assert [entry.branch for entry in last] == [(None, 0)] * 3
            assert [entry.cause for entry in last] == [deltapass.Cause.FAILED, None, None]
            assert last[-1].realised == Span(0, 4)
    assert torch.equal(outputs[0], toy(*calls[3][0]))


def test_skipped_refresh_makes_the_delta_stale(toy: Any) -> None:
    model = compiled(toy, **SCHEDULE)
    calls = calls_of(toy)
    with torch.no_grad(), deltapass.session(steps=STEPS) as session:
        for step in (0, 3):
            session.step(step)
            out = model(*calls[step][0], **calls[step][1])
        assert torch.equal(out, toy(*calls[3][0], **calls[3][1]))
        assert session.report().entries[-1].reason == "went from step 0 to 3"


def test_failed_refresh_leaves_no_delta_to_read(toy: Any) -> None:
    model = compiled(toy, **SCHEDULE)
    calls = calls_of(toy)
    with torch.no_grad(), deltapass.session(steps=STEPS) as session:
        follow(model, calls[:2], session)
        session.step(2)
        with pytest.raises(RuntimeError):  # a weight that cannot be multiplied
            weight = toy.blocks[5].mlp[0].weight
            kept, weight.data = weight.data, weight.data.to("meta")
            try:
                model(*calls[2][0], **calls[2][1])
            finally:
                weight.data = kept
        session.step(3)
        out = model(*calls[3][0], **calls[3][1])
        assert torch.equal(out, toy(*calls[3][0], **calls[3][1]))


def test_conditioning_that_changes_forgets_the_delta() -> None:
    toy = make("two_stream")
    model = compiled(toy, **SCHEDULE)
    calls = calls_of(toy)
    follow(model, calls[:1])
    args, kwargs = calls[1]
    prompted = (args, {"encoder_hidden_states": kwargs["encoder_hidden_states"] + 1})
    assert same(tensors(follow(model, [prompted])), tensors(follow(toy, [prompted])))


def test_conditioning_that_changes_at_every_step_is_said_once() -> None:
    toy = make("two_stream")
    model = compiled(toy, **SCHEDULE)
    calls = [
        (args, {"encoder_hidden_states": kwargs["encoder_hidden_states"] + at})
        for at, (args, kwargs) in enumerate(calls_of(toy))
    ]
    with pytest.warns(deltapass.RefusalWarning, match="changes at every step") as caught:
        outputs = tensors(follow(model, calls))
    assert len(caught) == 1
    assert same(outputs, tensors(follow(toy, calls)))


def test_deltas_are_the_only_memory_a_session_holds_and_the_plan_knows_it(toy: Any) -> None:
    model = compiled(toy, **SCHEDULE)
    args, kwargs = toy.inputs(999.0, 0)
    report = deltapass.explain(toy, *args, options={**SCHEDULE, "steps": STEPS}, **kwargs)
    held = []
    with torch.no_grad(), deltapass.session(steps=STEPS) as session:
        for step, (call_args, call_kwargs) in enumerate(calls_of(toy)):
            session.step(step)
            model(*call_args, **call_kwargs)
            held.append(session.nbytes)
    assert max(held) == report.buffer_bytes > 0
    assert session.nbytes == 0


def test_order_one_holds_two_deltas_a_stream(toy: Any) -> None:
    model = compiled(toy, order=1, **SCHEDULE)
    args, kwargs = toy.inputs(999.0, 0)
    options = {**SCHEDULE, "steps": STEPS, "order": 1}
    report = deltapass.explain(toy, *args, options=options, **kwargs)
    held = []
    with torch.no_grad(), deltapass.session(steps=STEPS) as session:
        for step, (call_args, call_kwargs) in enumerate(calls_of(toy)):
            session.step(step)
            model(*call_args, **call_kwargs)
            held.append(session.nbytes)
    assert max(held) == report.buffer_bytes


def test_session_with_a_schedule_of_its_own(toy: Any) -> None:
    model = compiled(toy, **SCHEDULE)
    calls = calls_of(toy)
    schedule = deltapass.delta_cache("middle", cached_blocks=2, interval=4)
    middle = Span(2, 4)
    table = (None, middle, middle, middle, None, middle, middle, middle)
    with deltapass.session(steps=STEPS, schedule=schedule) as session:
        outputs = tensors(follow(model, calls, session))
        assert session.report().as_planned
    assert same(outputs, tensors(oracle(toy, table, calls)))


def test_dropped_model_frees_its_implicit_deltas() -> None:
    toy = make("adaln", depth=4)
    model = compiled(toy, **SCHEDULE)
    pushed: list[weakref.ref[torch.Tensor]] = []

    def push(self: History, deltas: Any, at: int, keep: int) -> None:
        pushed.extend(map(weakref.ref, deltas))
        original(self, deltas, at, keep)

    original = History.push
    with patch.object(History, "push", push):
        follow(model, calls_of(toy)[:1])
    gc.collect()
    assert [held for held in pushed if held() is not None]
    del model, toy
    torch._dynamo.reset()
    gc.collect()
    assert [held for held in pushed if held() is not None] == []


def test_order_one_does_not_mix_the_deltas_of_two_sets_of_weights(toy: Any) -> None:
    model = compiled(toy, order=1, **SCHEDULE)
    calls = calls_of(toy)
    with deltapass.session(steps=STEPS) as session:
        follow(model, calls[:2], session)
        with torch.no_grad():
            next(iter(toy.parameters())).mul_(1.1)
        late = _from(model, calls, session, 2)
    with deltapass.session(steps=STEPS) as session:
        assert same(late, _from(model, calls, session, 2))


def _from(model: Any, calls: list[Call], session: Any, first: int) -> list[torch.Tensor]:
    outputs = []
    for step in (first, first + 1):
        session.step(step)
        with torch.no_grad():
            outputs.append(tensors([model(*calls[step][0], **calls[step][1])])[0])
    return outputs


def test_threads_with_a_copied_context_do_not_meet(toy: Any) -> None:
    model = compiled(toy, **SCHEDULE)
    trajectories = [calls_of(toy, shift) for shift in (0, 100)]
    alone = [tensors(follow(model, calls)) for calls in trajectories]
    contexts = [contextvars.copy_context() for _ in trajectories]
    barrier = threading.Barrier(len(trajectories))
    results: dict[int, list[torch.Tensor]] = {}

    def work(which: int) -> None:
        outputs = []
        for call in trajectories[which]:
            barrier.wait()  # step by step in turn, the worst case for shared state
            outputs += tensors(follow(model, [call]))
        results[which] = outputs

    threads = [
        threading.Thread(target=context.run, args=(work, at)) for at, context in enumerate(contexts)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(same(alone[at], results[at]) for at in range(len(trajectories)))


def test_loop_on_fixed_inputs_says_so_and_holds_no_deltas(toy: Any) -> None:
    model = compiled(toy, **SCHEDULE)
    call = calls_of(toy)[0]
    with pytest.warns(deltapass.RefusalWarning, match="share one timestep and sample") as caught:
        follow(model, [call] * 20)
    assert len(caught) == 1


def test_refused_calls_are_not_as_planned(toy: Any) -> None:
    schedule = deltapass.ExplicitSchedule((None, DEEP))
    model = compiled(toy, **SCHEDULE)
    calls = calls_of(toy)
    with (
        deltapass.session(steps=STEPS, schedule=schedule) as session,
        pytest.warns(deltapass.RefusalWarning, match="2 rows"),
    ):
        outputs = tensors(follow(model, calls[:2], session))
        assert not session.report().as_planned
    assert same(outputs, tensors(follow(toy, calls[:2])))


# ---- variants that cannot be lowered -------------------------------------------------------------


def test_a_variant_that_cannot_be_lowered_leaves_the_full_graph(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    toy = make("adaln")
    calls = [toy.inputs(999.0 - 100 * step, step) for step in range(4)]
    model = compiled(toy, fuse="whole", steps=4)
    with torch.no_grad():
        plain = [toy(*args, **kwargs) for args, kwargs in calls]
    with deltapass.session(steps=4) as session:
        follow(model, calls[:2], session)
    tried = []

    def fail(self: EagerLowering, body: Any) -> Any:
        tried.append(body.name)
        raise RuntimeError("out of registers")

    monkeypatch.setattr(EagerLowering, "lower", fail)
    other = ExplicitSchedule((None, Span(2, 4), Span(2, 4), Span(2, 4)))
    with (
        pytest.warns(RefusalWarning, match="out of registers") as said,
        deltapass.session(steps=4, schedule=other) as session,
    ):
        outputs = follow(model, calls, session)
        entries = session.report().entries
    assert all(map(torch.equal, outputs, plain))
    assert len(said) == len(tried) == 1
    assert [entry.realised for entry in entries] == [None] * 4
    assert {entry.cause for entry in entries} == {Cause.REFUSED}


def test_a_call_without_a_session_runs_in_full_where_its_variant_is_not_to_be_had(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    toy = make("adaln")
    calls = sampled([toy.inputs(999.0 - 40 * step, step) for step in range(8)])
    model = compiled(toy)
    with torch.no_grad():
        plain = [toy(*args, **kwargs) for args, kwargs in calls]
    follow(model, calls[:1])

    def fail(self: Variants, span: Span, taken: int) -> Any:
        raise LoweringError("eager", "whole", "out of registers")

    monkeypatch.setattr(Variants, "cached", fail)
    with pytest.warns(RefusalWarning, match="out of registers") as said:
        outputs = follow(model, calls)
    assert all(map(torch.equal, outputs, plain))
    assert len(said) == 1
