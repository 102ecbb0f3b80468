"""compiler/features.py: a span's live-outs kept as they are, and whole trajectories of them."""

from __future__ import annotations

from typing import Any

import models
import pytest
import torch
from driving import compiled, follow, in_session, oracle, tensors
from models import randomise
from models.adaln import ClippedDenoiser
from models.streams import Call
from models.tiny import make_tiny
from reference import DeltaCacheReference
from sweeps import sweep

import deltapass
from deltapass.backend import analyse
from deltapass.compiler.outline import Outline
from deltapass.compiler.plan import plan_span
from deltapass.compiler.rewrite import cached_program, refresh_program
from deltapass.compiler.tracing import trace
from deltapass.errors import SmallSpanError, StreamError
from deltapass.graph.executable import Executable
from deltapass.graph.program import Program
from deltapass.schedule.explicit import ExplicitSchedule
from deltapass.schedule.presets import faster_diffusion
from deltapass.schedule.rules import Span
from deltapass.schedule.weights import Weights

STEPS = 6
TOYS = ("adaln", "two_stream")
TINY = ("dit", "pixart", "sd3", "flux", "chroma", "wan", "cogvideox")
# Blocks of two kinds, joint streams, and a model that writes into its stream.
QUICK = (("flux", "shallow"), ("sd3", "middle"), ("chroma", "deep"))


def outlined(name: str) -> tuple[Outline, tuple[Any, ...]]:
    args, kwargs = models.make(name).inputs(500.0)
    graph, inputs = trace(models.make(name), args, kwargs)
    return analyse(graph, inputs), inputs


def run(program: Program, *arguments: Any) -> tuple[tuple[Any, ...], tuple[torch.Tensor, ...]]:
    return Executable(program, lambda body: body.module.forward)(arguments)


def calls_of(toy: Any, steps: int = STEPS) -> list[Call]:
    return [toy.inputs(999.0 * (1 - step / steps), step) for step in range(steps)]


def same(ours: Any, theirs: Any) -> bool:
    return all(map(torch.equal, tensors(ours), tensors(theirs)))


# ---- what leaves a span ------------------------------------------------------------------------


@pytest.mark.parametrize("wanted", [Span(1, 6), Span(0, 4)])
@pytest.mark.parametrize("name", ["side_value", "long_skip"])
def test_whatever_leaves_a_span_is_kept_and_gives_the_model_again(name: str, wanted: Span) -> None:
    # A delta has no live-in for a value that a block inside hands past the span's end.
    found, inputs = outlined(name)
    plan = plan_span(found, Span(wanted.start, wanted.stop, "feature"))
    assert (plan.span, plan.shrunk) == (plan.wanted, None)
    assert all(stream.live_in == "" for stream in plan.streams)
    results, kept = run(refresh_program(found.program, [plan]), *inputs)
    again, _ = run(cached_program(found.program, plan), *inputs, *kept)
    assert torch.equal(again[0], results[0])


def test_a_value_of_the_timestep_alone_is_never_kept() -> None:
    class Block(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = torch.nn.Linear(32, 32)

        def forward(self, x: torch.Tensor, time: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            time = torch.tanh(time + 1)  # of the next step it is another
            return x + self.inner(x) * time, time

    class Model(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.blocks = torch.nn.ModuleList(Block() for _ in range(4))

        def forward(self, sample: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
            x, time = sample, timestep[:, None, None]
            for block in self.blocks:
                x, time = block(x, time)
            return x

    graph, inputs = trace(Model(), (torch.randn(2, 8, 32), torch.rand(2)), {})
    found = analyse(graph, inputs)
    assert plan_span(found, Span(1, 4, "feature")).shrunk is None  # the last block's is not read
    with pytest.raises(StreamError, match=r"\(feature\) and is not made from the noisy sample"):
        plan_span(found, Span(1, 3, "feature"))


def test_a_small_span_is_worth_it_where_much_serves_it_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("deltapass.compiler.plan.LEAST_SHARE", 0.2)  # of six blocks, one is less
    toy = models.make("adaln")
    args, kwargs = toy.inputs(500.0)
    found = analyse(*trace(toy, args, kwargs))
    last, first = Span(5, 6), Span(0, 1)
    with pytest.raises(SmallSpanError):
        plan_span(found, last)
    with pytest.raises(SmallSpanError, match=r"skipping blocks 0\.\.0 \(feature\)"):
        plan_span(found, Span(*(first.start, first.stop), "feature"))
    assert plan_span(found, Span(last.start, last.stop, "feature")).streams


# ---- trajectories ------------------------------------------------------------------------------


@pytest.mark.parametrize("predictor", ["reuse", "linear"])
@pytest.mark.parametrize("name", TOYS)
def test_toys_equal_the_oracle(name: str, predictor: str) -> None:
    toy = models.make(name)
    schedule = faster_diffusion(cached_blocks=4, predictor=predictor)
    table = schedule.table(STEPS, 6)
    outputs, report = in_session(compiled(toy, schedule=schedule), calls_of(toy))
    assert tuple(entry.realised for entry in report.entries) == table
    assert table[1] == Span(0, 4, "feature")
    assert same(outputs, oracle(toy, table, calls_of(toy), predictor))
    plain = tensors(follow(toy, calls_of(toy)))
    for ours, theirs, span in zip(tensors(outputs), plain, table, strict=True):
        assert torch.equal(ours, theirs) == (span is None)


@pytest.mark.parametrize(
    ("name", "region"),
    sweep([*((name, "shallow") for name in TINY), ("sd3", "middle"), ("chroma", "deep")], QUICK),
)
def test_models_of_diffusers_equal_the_oracle(name: str, region: Any) -> None:
    pytest.importorskip("diffusers")
    tiny = make_tiny(name)
    blocks = len(tiny.blocks)
    schedule = deltapass.Schedule(
        outline=region, detail=region, cached_blocks=blocks - 2, keeps="feature"
    )
    table = schedule.table(STEPS, blocks)
    calls = [tiny.call(1.0 - step / STEPS, step) for step in range(STEPS)]
    outputs, report = in_session(compiled(tiny.model, schedule=schedule), calls)
    assert tuple(entry.realised for entry in report.entries) == table
    assert same(outputs, oracle(tiny, table, calls))


@pytest.mark.parametrize("predictor", ["reuse", "linear", "chebyshev"])
def test_features_of_float16_stay_within_its_range(predictor: str) -> None:
    toy = randomise(ClippedDenoiser()).half()
    schedule = faster_diffusion(cached_blocks=4, predictor=predictor)
    calls = calls_of(toy, 8)
    outputs, report = in_session(compiled(toy, schedule=schedule, steps=8), calls)
    assert report.cached == 4
    assert all(torch.isfinite(value).all() for value in tensors(outputs))
    assert same(outputs, oracle(toy, schedule.table(8, 6), calls, predictor))


def test_rows_of_a_table_keep_one_or_the_other() -> None:
    toy = models.make("two_stream")
    delta, feature = Span(0, 4), Span(0, 4, "feature")
    table = (None, delta, feature, None, feature, Span(2, 6, "feature"))
    outputs, report = in_session(compiled(toy, schedule=ExplicitSchedule(table)), calls_of(toy))
    assert tuple(entry.realised for entry in report.entries) == table
    assert same(outputs, oracle(toy, table, calls_of(toy)))


def test_rows_have_weights_of_features() -> None:
    toy = models.make("two_stream")
    feature = Span(0, 4, "feature")
    table = (None, None, feature, feature, None, feature)
    given = {2: ((1.5, -0.5), (1.2, -0.2)), 3: ((2.0, -1.0), (0.7, 0.3)), 5: ((1.1,), (0.9,))}
    weights = tuple(Weights(given[at]) if at in given else None for at in range(STEPS))
    schedule = ExplicitSchedule(table, "reuse", weights)
    outputs, _ = in_session(compiled(toy, schedule=schedule), calls_of(toy))
    reference = DeltaCacheReference(toy, toy.blocks_in_order(), toy.streams, given=given)
    assert same(outputs, reference.run(table, calls_of(toy)))


def test_a_session_may_keep_features_where_the_model_keeps_deltas() -> None:
    toy = models.make("adaln")
    model = compiled(toy, cached_blocks=4, schedule="delta-cache-shallow")
    for schedule in ("faster-diffusion", faster_diffusion(cached_blocks=4, predictor="linear")):
        with deltapass.session(steps=STEPS, schedule=schedule) as session:
            outputs = follow(model, calls_of(toy), session)
        table = deltapass.session(steps=1, schedule=schedule).schedule.table(STEPS, 6)
        name = "reuse" if isinstance(schedule, str) else "linear"
        assert same(outputs, oracle(toy, table, calls_of(toy), name))
    outputs, _ = in_session(model, calls_of(toy))
    table = deltapass.Schedule(outline="shallow", cached_blocks=4).table(STEPS, 6)
    assert same(outputs, oracle(toy, table, calls_of(toy)))


def test_another_batch_refreshes_and_branches_do_not_meet() -> None:
    toy = models.make("two_stream")
    model = compiled(toy, schedule="faster-diffusion")
    runs = {branch: calls_of(toy, 4) for branch in ("cond", "uncond")}
    runs["uncond"] = [toy.inputs(999.0 * (1 - step / 4), step + 50) for step in range(4)]
    alone = {branch: tensors(in_session(model, calls)[0]) for branch, calls in runs.items()}
    with torch.no_grad(), deltapass.session(steps=4) as session:
        for step in range(4):
            for branch, calls in runs.items():
                session.step(step, branch=branch)
                args, kwargs = calls[step]
                assert torch.equal(model(*args, **kwargs), alone[branch][step])
    (args, kwargs), (less, fewer) = runs["cond"][:2]
    with torch.no_grad(), deltapass.session(steps=4) as session:
        session.step(0)
        model(*args, **kwargs)
        session.step(1)
        half = {name: value[:1] for name, value in fewer.items()}
        output = model(*(value[:1] for value in less), **half)
    assert session.report().entries[-1].realised is None
    assert torch.equal(output, toy(*(value[:1] for value in less), **half))


def test_costs_and_bytes_are_those_of_what_is_run() -> None:
    toy = models.make("two_stream")
    args, kwargs = toy.inputs(500.0)
    options = {"schedule": "faster-diffusion", "cached_blocks": 4, "steps": STEPS}
    report = deltapass.explain(toy, *args, options=options, **kwargs)
    cached = report.variants[-1]
    assert (cached.name, cached.blocks) == ("cached_0_4_feature", 2)
    assert report.schedule == "(R fs4)x3"
    assert "fs4: blocks 0..3 (feature) skipped" in report.legend
    with torch.no_grad(), deltapass.session(steps=STEPS) as session:
        model = compiled(toy, **options)
        session.step(0)
        model(*args, **kwargs)
        assert session.nbytes == report.buffer_bytes


def test_sample_of_a_cached_step_is_not_read() -> None:
    # The baseline's fault, as the paper says: with no long skip nothing carries the sample on.
    toy = models.make("adaln")
    model = compiled(toy, schedule="faster-diffusion")
    (args, _), *_ = calls_of(toy)
    with torch.no_grad(), deltapass.session(steps=2) as session:
        session.step(0)
        model(*args)
        session.step(1)
        one = model(*args)
    with torch.no_grad(), deltapass.session(steps=2) as session:
        session.step(0)
        model(*args)
        session.step(1)
        other = model(args[0] + 1, args[1])
    assert torch.equal(one, other)
