"""compiler/variants.py: every variant is made before the run, and all share their bodies."""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Sequence
from typing import Any

import models
import pytest
import torch
from driving import oracle, sampled
from torch import Tensor, fx

import deltapass
from deltapass.backend import analyse, compile_graph
from deltapass.compiler.lowering import LoweredBodies
from deltapass.compiler.outline import Outline
from deltapass.compiler.plan import make_plan
from deltapass.compiler.tracing import trace
from deltapass.compiler.variants import Variants, fused
from deltapass.errors import RefusalWarning, StreamError
from deltapass.graph.executable import Executable, Lowered
from deltapass.graph.program import Body
from deltapass.options import parse_options
from deltapass.schedule.explicit import ExplicitSchedule
from deltapass.schedule.rules import Schedule, Span
from deltapass.schedule.weights import Weights
from deltapass.selector.selector import Selector

STEPS = 20
DEEP, SHALLOW = Span(1, 4), Span(0, 3)
Traced = tuple[fx.GraphModule, tuple[Any, ...]]

fuses = pytest.mark.parametrize("fuse", ["blocks", "whole"])
orders = pytest.mark.parametrize("order", [0, 1])


class Recording:
    """The eager lowering, noting which bodies it was given."""

    def __init__(self) -> None:
        self.lowered: list[str] = []

    exact = True

    def can_lower(self, body: Body) -> str | None:
        return None

    def lower(self, body: Body) -> Lowered:
        self.lowered.append(body.name)
        return body.module.forward

    def plain(self, module: fx.GraphModule, arguments: Sequence[Any]) -> Callable[..., Any]:
        return module.forward


@functools.cache
def traced(name: str) -> Traced:
    model = models.make(name, depth=4)
    args, kwargs = model.inputs(500.0)
    return trace(model, args, kwargs)


@functools.cache
def outlined(name: str) -> Outline:
    return analyse(*traced(name))


def variants(name: str, *, whole: bool = False) -> tuple[Variants, Recording]:
    lowering = Recording()
    bodies = LoweredBodies("recording", lowering)
    return Variants(outline=outlined(name), bodies=bodies, whole=whole), lowering


def selector(name: str, **options: Any) -> tuple[Selector, Recording]:
    lowering = Recording()
    module, inputs = traced(name)
    return compile_graph(module, inputs, parse_options(options), lowering), lowering


def inputs_at(name: str, step: int) -> list[Any]:
    """The graph's inputs at a step: another sample and another timestep."""
    changed = {"timestep": torch.full((models.B,), 999.0 - 50.0 * step)}
    names = [given.name for given in outlined(name).captured.inputs]
    given = dict(zip(names, traced(name)[1], strict=True))
    changed["hidden_states"] = models.noise(step, *given["hidden_states"].shape)
    return list({**given, **changed}.values())


def follow(run: Selector, name: str, steps: int = STEPS) -> list[Tensor]:
    """A trajectory in a session."""
    outputs = []
    with deltapass.session(steps=steps) as session, torch.no_grad():
        for step in range(steps):
            session.step(step)
            outputs.append(run(*inputs_at(name, step))[0])
    planned = [entry.planned for entry in session.report().entries]
    assert planned == [entry.realised for entry in session.report().entries]
    assert any(span is not None for span in planned)
    return outputs


# ---- warm-up -----------------------------------------------------------------------------------


@fuses
@orders
@pytest.mark.parametrize("schedule", ["delta-dit", "delta-cache-middle", "reversed"])
def test_no_body_is_lowered_during_a_trajectory(schedule: str, order: int, fuse: str) -> None:
    run, lowering = selector("adaln", schedule=schedule, order=order, fuse=fuse, steps=STEPS)
    before = list(lowering.lowered)
    follow(run, "adaln")
    assert lowering.lowered == before


@orders
@pytest.mark.parametrize("schedule", ["delta-dit", "delta-cache-middle", "reversed"])
def test_no_body_is_lowered_when_only_the_session_knows_the_steps(
    schedule: str, order: int
) -> None:
    run, lowering = selector("two_stream", schedule=schedule, order=order)
    before = list(lowering.lowered)
    follow(run, "two_stream")
    assert lowering.lowered == before


@pytest.mark.parametrize("schedule", ["delta-dit", "reversed"])
def test_no_whole_variant_is_lowered_when_the_timestep_tells_the_step(schedule: str) -> None:
    run, lowering = selector("adaln", schedule=schedule, fuse="whole")
    before = list(lowering.lowered)
    with torch.no_grad():
        names = [given.name for given in outlined("adaln").captured.inputs]
        given = (zip(names, inputs_at("adaln", step), strict=True) for step in range(STEPS))
        for _, inputs in sampled([((), dict(each)) for each in given]):
            run(*inputs.values())
    assert lowering.lowered == before


def test_no_body_is_lowered_where_a_span_shrank() -> None:
    with pytest.warns(RefusalWarning, match=r"caching blocks 3\.\.3 instead of blocks 1\.\.3"):
        run, lowering = selector("side_value", schedule="delta-cache-deep", steps=STEPS)
    before = list(lowering.lowered)
    follow(run, "side_value")
    assert lowering.lowered == before


def test_second_trajectory_lowers_nothing_either() -> None:
    run, lowering = selector("adaln", steps=STEPS)
    before = list(lowering.lowered)
    follow(run, "adaln")
    follow(run, "adaln")
    assert lowering.lowered == before


def test_schedule_that_never_caches_makes_the_full_program_only() -> None:
    _, lowering = selector("adaln", schedule="none")
    assert lowering.lowered == ["prologue", "block_0", "epilogue"]


# ---- shared bodies -----------------------------------------------------------------------------


def test_all_variants_of_a_plan_need_few_bodies() -> None:
    _, lowering = selector("adaln", steps=STEPS, interval=2)
    assert sorted(lowering.lowered) == ["block_0", "delta", "epilogue", "predict_0", "prologue"]


def test_further_variant_of_equal_blocks_lowers_nothing_new() -> None:
    made, lowering = variants("adaln")
    made.refresh((DEEP,))
    made.cached(DEEP)
    before = list(lowering.lowered)
    for span in (SHALLOW, Span(1, 2), Span(0, 4)):
        made.refresh((span,))
        made.cached(span)
    assert lowering.lowered == before


def test_another_session_schedule_lowers_nothing_new() -> None:
    run, lowering = selector("adaln", steps=STEPS, interval=2)
    before = list(lowering.lowered)
    schedule = ExplicitSchedule((None, Span(1, 3), None, Span(2, 4)))
    with deltapass.session(steps=4, schedule=schedule) as session, torch.no_grad():
        for step in range(4):
            session.step(step)
            run(*traced("adaln")[1])
    assert [entry.realised for entry in session.report().entries] == list(schedule.rows)
    assert lowering.lowered == before


def test_variant_is_made_once() -> None:
    made, _ = variants("adaln")
    assert made.refresh((DEEP,)) is made.refresh((DEEP,))
    assert made.cached(DEEP) is made.cached(DEEP)
    assert made.refresh((DEEP,)) is not made.refresh(())


def test_threads_get_one_and_the_same_variant() -> None:
    made, lowering = variants("adaln")
    got: list[Executable] = []
    start = threading.Barrier(4)

    def ask() -> None:
        start.wait()
        got.append(made.cached(DEEP))

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(got) == 4
    assert len({id(variant) for variant in got}) == 1
    assert len(lowering.lowered) == len(set(lowering.lowered))


# ---- spans -------------------------------------------------------------------------------------


def test_wanted_span_is_replaced_by_the_possible_one() -> None:
    made, _ = variants("side_value")
    with pytest.warns(RefusalWarning, match=r"blocks 3\.\.3 instead of blocks 1\.\.3.*value_5"):
        assert made.actual(DEEP) == Span(3, 4)


def test_smaller_span_is_told_once() -> None:
    made, _ = variants("side_value")
    with pytest.warns(RefusalWarning) as caught:
        made.actual(DEEP)
        made.actual(DEEP)
    assert len(caught) == 1


def test_refresh_stays_a_refresh() -> None:
    made, _ = variants("adaln")
    assert made.actual(None) is None


def test_table_is_realised_row_by_row() -> None:
    made, _ = variants("adaln")
    table = (None, DEEP, None, SHALLOW)
    assert made.realised(table) == table


def test_impossible_span_becomes_a_refresh_and_is_told_once() -> None:
    made, _ = variants("side_value")
    with pytest.warns(RefusalWarning, match=r"not caching blocks 2\.\.2, .*value_5") as caught:
        assert made.realised((None, Span(2, 3), Span(2, 3))) == (None, None, None)
    assert len(caught) == 1


def test_impossible_and_smaller_spans_are_refused_with_strict() -> None:
    lowering = LoweredBodies("recording", Recording())
    made = Variants(outline=outlined("side_value"), bodies=lowering, strict=True)
    for wanted in (Span(2, 3), DEEP):
        with pytest.raises(StreamError, match=f"leaves {wanted} and"):
            made.actual(wanted)


def test_a_span_that_cannot_be_cached_leaves_the_others_of_its_schedule() -> None:
    rows = (None, Span(2, 3), SHALLOW, None, Span(0, 2), Span(3, 4))
    with pytest.warns(RefusalWarning) as caught:
        run, _ = selector("side_value", schedule=ExplicitSchedule(rows), steps=len(rows))
    said = [str(warning.message).split(":")[0] for warning in caught]
    assert said == [
        "not caching blocks 2..2, steps that would skip it are full",
        "caching blocks 0..1 instead of blocks 0..2",
    ]
    table = (None, None, Span(0, 2), None, Span(0, 2), Span(3, 4))
    model = models.make("side_value", depth=4)
    calls = [((inputs := named(step))["hidden_states"], inputs["timestep"]) for step in range(6)]
    wanted = oracle(model, table, [(call, {}) for call in calls])
    with deltapass.session(steps=len(rows)) as session, torch.no_grad():
        for step, expected in enumerate(wanted):
            session.step(step)
            assert torch.equal(run(*inputs_at("side_value", step))[0], expected)
    assert tuple(entry.realised for entry in session.report().entries) == table


def named(step: int) -> dict[str, Any]:
    """The data inputs of a step, by name."""
    names = [given.name for given in outlined("side_value").captured.inputs]
    return dict(zip(names, inputs_at("side_value", step), strict=True))


# ---- whole variants ----------------------------------------------------------------------------


@orders
@pytest.mark.parametrize("name", ["adaln", "two_stream", "cross_attention", "in_place"])
def test_whole_variants_equal_stitched_ones_bit_for_bit(name: str, order: int) -> None:
    stitched, _ = selector(name, order=order, steps=STEPS)
    whole, _ = selector(name, order=order, steps=STEPS, fuse="whole")
    outputs = zip(follow(stitched, name), follow(whole, name), strict=True)
    assert all(torch.equal(one, two) for one, two in outputs)


def test_whole_variant_is_one_call() -> None:
    made, lowering = variants("adaln", whole=True)
    made.cached(DEEP)
    assert lowering.lowered == ["cached_1_4"]
    assert [call.label for call in fused(outlined("adaln").program).calls] == ["whole"]


def test_whole_variants_are_those_of_the_schedule() -> None:
    _, lowering = selector("adaln", fuse="whole", steps=STEPS, schedule="delta-cache-deep")
    assert sorted(lowering.lowered) == ["cached_1_4", "refresh_1_4"]
    # The left-over step comes first, and nobody reads a delta of it.
    _, lowering = selector("adaln", fuse="whole", steps=STEPS + 1, schedule="delta-cache-deep")
    assert sorted(lowering.lowered) == ["cached_1_4", "refresh", "refresh_1_4"]


@fuses
@pytest.mark.parametrize(("predictor", "taken"), [("reuse", 0), ("linear", 2)])
def test_preparing_a_table_makes_exactly_what_its_steps_run(
    fuse: str, predictor: str, taken: int
) -> None:
    made, lowering = variants("adaln", whole=fuse == "whole")
    table = (None, DEEP, None, SHALLOW, None)
    schedule = ExplicitSchedule(table, predictor)
    made.prepare(table, schedule)
    before = list(lowering.lowered)
    for emitted in ((), (SHALLOW,), (SHALLOW, DEEP) if taken else (DEEP,)):
        made.refresh(emitted)
    assert made.cached(DEEP, taken) is not made.cached(SHALLOW, taken)
    made.prepare(table, schedule)
    assert lowering.lowered == before


@fuses
def test_a_variant_of_more_deltas_serves_for_fewer_without_a_compile(fuse: str) -> None:
    made, lowering = variants("adaln", whole=fuse == "whole")
    table = (None, DEEP, None, DEEP)
    made.prepare(table, ExplicitSchedule(table, "quadratic"))
    before = list(lowering.lowered)
    assert [made.fitting(DEEP, taken) for taken in (0, 1, 2, 3, 4)] == [3, 3, 3, 3, 4]
    made.prepare(table, ExplicitSchedule(table, "linear"))
    own = (None, Weights(((0.9,),)), None, Weights(((1.5, -0.5),)))
    made.prepare(table, ExplicitSchedule(table, weights=own))
    assert lowering.lowered == before
    made.prepare(table, ExplicitSchedule(table, "chebyshev"))
    assert len(lowering.lowered) == len(before) + 1


def test_a_sessions_own_whole_variants_are_all_made_at_its_first_step() -> None:
    run, lowering = selector("adaln", fuse="whole", steps=STEPS)
    schedule = ExplicitSchedule((None, Span(1, 3), None, Span(2, 4)))
    with deltapass.session(steps=4, schedule=schedule) as session, torch.no_grad():
        session.step(0)
        run(*traced("adaln")[1])
        before = list(lowering.lowered)
        for step in range(1, 4):
            session.step(step)
            run(*traced("adaln")[1])
    assert lowering.lowered == before
    assert {"cached_1_3", "cached_2_4"} <= set(before)


def test_executable_knows_its_cost() -> None:
    made = variants("adaln")[0]
    assert made.program(("cached", (DEEP,), 0)).macs == made.cached(DEEP).macs


@fuses
def test_deltas_of_a_refresh_come_in_the_order_asked(fuse: str) -> None:
    made, _ = variants("two_stream", whole=fuse == "whole")
    _, deltas = made.refresh((SHALLOW, DEEP))(traced("two_stream")[1])
    shapes = [tuple(delta.shape)[1] for delta in deltas]
    assert sorted(shapes[:2]) == [models.S, models.T]  # text and image of the shallow blocks
    assert shapes[2:] == [models.T]


def test_plan_without_steps_warms_what_noise_levels_may_ask_for() -> None:
    made, lowering = variants("adaln", whole=True)
    made.warm_up(make_plan(outlined("adaln"), Schedule()))
    assert {"refresh_0_3_1_4", "refresh_0_3", "cached_0_3", "cached_1_4"} <= set(lowering.lowered)
