"""The table of plan.json: played by itself it is what a session does, and that is Delta-Cache."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from driving import follow, tensors
from memory_bundle import MemoryBundle, memory_bundle, play
from models import Denoiser, make
from reference import Call, DeltaCacheReference

import deltapass
from deltapass.errors import RefusalWarning, ScheduleError
from deltapass.exporting.compare import relative_error
from deltapass.schedule.explicit import AnySchedule
from deltapass.schedule.rules import Span, Table
from deltapass.schedule.weights import Weights

STEPS, TOLERANCE = 8, 1e-6
A, B = Span(1, 3), Span(0, 2)  # both of two streams
TABLE: Table = (None, None, A, None, A, A, None, B)
OWN = {
    4: Weights(shared=((1.6, -0.8, 0.3), (1.2, -0.1, 0.0))),
    5: Weights(shared=((1.9, -1.1),), branches=(("cond", ((0.7, 0.4), (1.0, 0.2))),)),
    7: Weights(shared=((0.8,),)),
}
WEIGHED = deltapass.ExplicitSchedule(
    TABLE, predictor="linear", weights=tuple(map(OWN.get, range(STEPS)))
)
RULES = ("reuse", "linear", "quadratic", "adams-bashforth", "chebyshev")


@pytest.fixture(scope="module")
def model() -> Denoiser:
    return make("two_stream", depth=4)


@pytest.fixture(scope="module")
def roomy(model: Denoiser) -> MemoryBundle:
    """One for three weighted deltas."""
    return memory_bundle(model, schedule=WEIGHED)


def calls_of(model: Denoiser) -> list[Call]:
    calls = [model.inputs(1000 * (1 - at / STEPS), at) for at in range(STEPS)]
    return [(args, calls[0][1]) for args, _ in calls]  # the prompt stays


def oracle(
    model: Denoiser, table: Table, rule: str, given: dict[int, Any] | None = None
) -> list[torch.Tensor]:
    blocks = model.blocks_in_order()
    reference = DeltaCacheReference(
        model, blocks, model.streams, rule, steps=STEPS, given=given or {}
    )
    return tensors(reference.run(table, calls_of(model)))


def in_session(
    bundle: MemoryBundle, model: Denoiser, schedule: AnySchedule | None = None, branch: Any = None
) -> list[torch.Tensor]:
    outputs, loaded = [], bundle.loaded()
    with torch.no_grad(), deltapass.session(STEPS, schedule=schedule) as session:
        for step, (args, kwargs) in enumerate(calls_of(model)):
            session.step(step, branch=branch)
            outputs.append(loaded(*args, **kwargs))
    assert session.report().as_planned
    return outputs


FEATURES: Table = tuple(row and Span(row.start, row.stop, "feature") for row in TABLE)
MIXED: Table = (*TABLE[:4], *FEATURES[4:])


@pytest.mark.parametrize("rows", [TABLE, FEATURES, MIXED], ids=["deltas", "features", "both"])
@pytest.mark.parametrize("rule", RULES)
def test_the_table_alone_tells_what_a_session_does(rule: str, rows: Table, model: Denoiser) -> None:
    schedule = deltapass.ExplicitSchedule(rows, predictor=rule)
    bundle = memory_bundle(model, schedule=schedule)
    assert bundle.plan.predictor == rule
    played, run = play(bundle, calls_of(model)), in_session(bundle, model)
    assert all(map(torch.equal, played, run))
    assert relative_error(run, oracle(model, rows, rule)) < TOLERANCE


def test_a_bundle_of_features_has_no_deltas(model: Denoiser) -> None:
    bundle = memory_bundle(model, schedule=deltapass.ExplicitSchedule(FEATURES))
    match = r"cannot skip blocks 1\.\.2; it can skip blocks 1\.\.2 \(feature\)"
    with pytest.raises(RefusalWarning, match=match):
        in_session(bundle, model, deltapass.ExplicitSchedule(TABLE))


def test_rows_say_which_deltas_and_weights(roomy: MemoryBundle) -> None:
    assert (roomy.plan.predictor, roomy.plan.taken) == ("linear", 3)
    reads = [row.reads for row in roomy.plan.table]
    assert reads == [(), (), (1, 0), (), (3, 1, 0), (3, 1), (), (6,)]
    weights = [row.weights for row in roomy.plan.table]
    assert weights[2] == ((2.0, -1.0, 0.0),) * 2  # of the predictor
    assert weights[4] == OWN[4].shared
    assert weights[5] == ((1.9, -1.1, 0.0),) * 2
    assert roomy.plan.table[5].branches == {"cond": ((0.7, 0.4, 0.0), (1.0, 0.2, 0.0))}
    assert weights[7] == ((0.8, 0.0, 0.0),) * 2
    assert not any(row.fit for row in roomy.plan.table)


@pytest.mark.parametrize("branch", ["uncond", "cond"])
def test_weights_of_rows_are_those_of_the_branch(
    branch: str, roomy: MemoryBundle, model: Denoiser
) -> None:
    given = {step: weights.of(branch, 2) for step, weights in OWN.items()}
    run = in_session(roomy, model, branch=branch)
    assert all(map(torch.equal, play(roomy, calls_of(model), branch), run))
    assert relative_error(run, oracle(model, TABLE, "linear", given)) < TOLERANCE
    other = oracle(model, TABLE, "linear")
    assert relative_error(run[5:6], other[5:6]) > 100 * TOLERANCE


@pytest.mark.parametrize("rule", RULES[:-1])
def test_a_bundle_of_three_deltas_serves_schedules_of_fewer(
    rule: str, roomy: MemoryBundle, model: Denoiser
) -> None:
    table = (None, A, None, B, None, None, A, A)
    run = in_session(roomy, model, deltapass.ExplicitSchedule(table, predictor=rule))
    assert relative_error(run, oracle(model, table, rule)) < TOLERANCE


def test_a_forced_refresh_falls_back_on_the_predictor(roomy: MemoryBundle, model: Denoiser) -> None:
    loaded = roomy.loaded()
    with torch.no_grad(), deltapass.session(STEPS) as session:
        first = follow(loaded, calls_of(model)[:4], session)
        session.free()
        rest = []
        for step, (args, kwargs) in enumerate(calls_of(model)[4:], 4):
            session.step(step)
            rest.append(loaded(*args, **kwargs))
    table = (*TABLE[:4], None, *TABLE[5:])
    # Step 5 has one delta, of a refresh that was not planned; what step 7 reads is as planned.
    given = {7: OWN[7].of("", 2)}
    reference = oracle(model, table, "linear", {**given, 5: [(1.0,)]})
    assert relative_error([*first, *rest], reference) < TOLERANCE


def test_coefficients_of_a_fit_are_told_by_its_refreshes(model: Denoiser) -> None:
    bundle = memory_bundle(model, schedule=deltapass.ExplicitSchedule(TABLE, "chebyshev"))
    fits = [row.fit for row in bundle.plan.table]
    assert [fit is not None for fit in fits] == [row is None for row in TABLE]
    told = [(len(fit.basis), len(fit.gains)) for fit in fits if fit is not None]
    assert told == [(0, 1), (1, 2), (2, 4), (4, 4)]
    assert bundle.plan.table[5].reads == (3, 1, 0)


def test_weights_for_other_streams_are_refused(model: Denoiser) -> None:
    own = Weights(shared=((1.0,), (1.0,), (1.0,)))
    schedule = deltapass.ExplicitSchedule((None, A), weights=(None, own))
    with pytest.raises(ScheduleError, match="weights for 3 streams, its span has 2"):
        memory_bundle(model, schedule=schedule)
