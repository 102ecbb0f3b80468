"""compiler/cross_attention.py: what it gives is kept, and the blocks run on without it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from cross_attention_oracle import CrossAttentionOracle, attentions_of
from driving import compiled, in_session, tensors
from models.cross import B, CrossDenoiser, D, S, T, cross_denoiser
from models.streams import Call
from torch import Tensor, nn

import deltapass
from deltapass.backend import analyse
from deltapass.compiler.outline import Outline
from deltapass.compiler.plan import plan_span
from deltapass.compiler.rewrite import cached_program, refresh_program
from deltapass.compiler.tracing import trace
from deltapass.errors import ExportError, NoCrossAttentionError, StreamError
from deltapass.graph.executable import Executable
from deltapass.graph.program import Program
from deltapass.schedule.explicit import ExplicitSchedule
from deltapass.schedule.presets import tgate
from deltapass.schedule.rules import Span

STEPS = 6


def whole(blocks: int) -> Span:
    return Span(0, blocks, "cross-attention")


def run(program: Program, found: Outline, *inputs: Any) -> tuple[Any, tuple[Tensor, ...]]:
    constants = tuple(found.captured.constants.values())
    own, kept = inputs[: len(found.captured.inputs)], inputs[len(found.captured.inputs) :]
    return Executable(program, lambda body: body.module.forward)((*own, *constants, *kept))


def same(ours: Any, theirs: Any) -> bool:
    return all(map(torch.equal, tensors(ours), tensors(theirs)))


def outlined(model: nn.Module, call: Call) -> tuple[Outline, tuple[Any, ...]]:
    graph, inputs = trace(model, *call)
    return analyse(graph, inputs), tuple(inputs)


def calls_of(model: CrossDenoiser) -> list[Call]:
    return [model.inputs(step / STEPS, step) for step in range(STEPS)]


# ---- what is found -----------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["attention", "named", "products"])
def test_one_addend_a_block_is_kept_and_gives_the_model_again(kind: str) -> None:
    model = cross_denoiser(kind, masked=kind != "products")
    found, inputs = outlined(model, model.inputs())
    plan = plan_span(found, whole(4))
    assert (len(plan.streams), plan.shrunk) == (4, None)
    results, kept = run(refresh_program(found.finer, [plan]), found, *inputs)
    assert torch.equal(results[0], model(*model.inputs()[0], **model.inputs()[1]))
    again, _ = run(cached_program(found.finer, plan), found, *inputs, *kept)
    assert torch.equal(again[0], results[0])


def test_nothing_of_cross_attention_is_run_not_even_the_projection_of_the_text() -> None:
    model = cross_denoiser()
    found, inputs = outlined(model, model.inputs())
    program = cached_program(found.finer, plan_span(found, whole(4)))
    (text,) = (i.name for i in found.captured.inputs if i.name.strip("_").endswith("text"))
    assert all(text not in call.inputs for call in program.calls)
    keys, queries, out = (B * rows * D * D for rows in (2 * S, T, T))
    spared = 4 * (keys + queries + out + 2 * B * T * S * D) + B * S * D * D
    assert found.program.macs.full - program.macs.full == spared
    # The finer program is the same work in more calls.
    assert found.finer.macs == found.program.macs
    assert found.finer.operations == found.program.operations
    assert inputs


def test_a_part_of_the_stack_keeps_the_text_for_the_others() -> None:
    model = cross_denoiser()
    found, inputs = outlined(model, model.inputs())
    span = Span(1, 3, "cross-attention")
    plan = plan_span(found, span)
    assert len(plan.streams) == 2
    labels = [call.label for call in cached_program(found.finer, plan).calls]
    assert labels.count("cross_attention") == 3  # two blocks, and the projection of the text
    results, kept = run(refresh_program(found.finer, [plan]), found, *inputs)
    again, _ = run(cached_program(found.finer, plan), found, *inputs, *kept)
    assert torch.equal(again[0], results[0])


def test_equal_blocks_share_their_parts() -> None:
    model = cross_denoiser()
    found, _ = outlined(model, model.inputs())
    calls = [call for call in found.finer.calls if call.label != "between"]  # the timestep again
    assert {call.body.name for call in calls} == {
        *("prologue", "cross_attention", "block_0", "cross_attention_1", "rest", "epilogue"),
    }
    assert [call.label for call in calls] == [
        *("prologue", "cross_attention"),
        *["block", "cross_attention", "rest"] * 4,
        "epilogue",
    ]


def test_a_gate_is_kept_with_what_it_scales() -> None:
    model = cross_denoiser(end="gated")
    found, inputs = outlined(model, model.inputs())
    plan = plan_span(found, whole(4))
    _, kept = run(refresh_program(found.finer, [plan]), found, *inputs)
    ones = torch.sigmoid(torch.ones(B, 1, 1))
    hooked: list[Tensor] = []
    for block in model.blocks:
        block.attn2.register_forward_hook(lambda _, __, out: hooked.append(out * ones))
    args, kwargs = model.inputs()
    model(*args, **kwargs)
    assert all(map(torch.equal, kept, hooked))


def test_an_output_that_is_joined_with_others_is_no_addend() -> None:
    model = cross_denoiser(end="joined")
    found, _ = outlined(model, model.inputs())
    with pytest.raises(StreamError, match="cross-attention that 'cat' joins with other values"):
        plan_span(found, whole(4))


@pytest.mark.parametrize(
    ("name", "fact"),
    [
        ("dit", "of 4 attention products none takes keys or values from class_labels alone"),
        ("sd3", "from pooled_projections, encoder_hidden_states alone.* as in joint attention"),
        ("flux", "none takes keys or values from .*encoder_hidden_states"),
        ("cogvideox", "of 4 attention products none"),
    ],
)
def test_models_without_it_say_what_they_have(name: str, fact: str) -> None:
    pytest.importorskip("diffusers")
    from models.tiny import make_tiny

    tiny = make_tiny(name)
    args, kwargs = tiny.call(0.5)
    options = {"schedule": "tgate", "steps": 20}
    report = deltapass.explain(tiny.model, *args, options=options, **kwargs)
    assert report.refusal is not None
    assert "there is no cross-attention to keep" in report.refusal
    with pytest.raises(NoCrossAttentionError, match=fact):
        deltapass.explain(tiny.model, *args, options={**options, "strict": True}, **kwargs)


def test_a_model_without_attention_says_so() -> None:
    import models

    model = models.make("adaln")
    args, kwargs = model.inputs(500.0)
    with pytest.raises(NoCrossAttentionError, match="nothing but the sample and the timestep"):
        plan_span(outlined(model, (args, kwargs))[0], Span(0, 6, "cross-attention"))


# ---- trajectories ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "spans",
    [
        (None, whole(4), whole(4), None, whole(4), whole(4)),
        (None, Span(1, 3, "cross-attention"), None, whole(4), Span(1, 4, "cross-attention"), None),
    ],
)
@pytest.mark.parametrize("kind", ["attention", "products"])
def test_toys_equal_the_oracle(kind: str, spans: Any) -> None:
    model = cross_denoiser(kind)
    calls = calls_of(model)
    outputs, report = in_session(compiled(model, schedule=ExplicitSchedule(spans)), calls)
    assert tuple(entry.realised for entry in report.entries) == spans
    attentions = attentions_of(list(model.blocks))
    oracle = CrossAttentionOracle(model, attentions)
    assert same(outputs, oracle.run(spans, calls))
    plain = [model(*args, **kwargs) for args, kwargs in calls]
    pairs = zip(tensors(outputs), tensors(plain), spans, strict=True)
    assert all(torch.equal(one, other) == (span is None) for one, other, span in pairs)


def test_rows_of_a_table_keep_deltas_features_or_cross_attention() -> None:
    model, span = cross_denoiser(), whole(4)
    table = (None, Span(0, 2), span, Span(1, 3, "feature"), None, span)
    ours = compiled(model, schedule=ExplicitSchedule(table))
    outputs, report = in_session(ours, calls_of(model))
    assert tuple(entry.realised for entry in report.entries) == table
    oracle = CrossAttentionOracle(model, attentions_of(list(model.blocks)))
    expected = oracle.run((None, span, span, span, None, span), calls_of(model))
    pairs = zip(tensors(outputs), tensors(expected), strict=True)
    assert [torch.equal(*pair) for pair in pairs] == [True, False, True, False, True, True]


@pytest.mark.parametrize("name", ["pixart", "wan"])
def test_transformers_of_diffusers_equal_the_oracle(name: str) -> None:
    pytest.importorskip("diffusers")
    from models.tiny import make_tiny

    tiny = make_tiny(name)
    blocks = len(tiny.blocks)
    calls = [tiny.call(1.0 - step / STEPS, step) for step in range(STEPS)]
    outputs, report = in_session(compiled(tiny.model, schedule="tgate", gate=3), calls)
    table = (None,) * 3 + (whole(blocks),) * 3
    assert tuple(entry.realised for entry in report.entries) == table
    oracle = CrossAttentionOracle(tiny.model, attentions_of(tiny.blocks))
    assert same(outputs, oracle.run(table, calls))


@pytest.mark.parametrize(
    "name",
    [f"{kind}Transformer3DModel" for kind in ("Allegro", "AnyFlow", "ChronoEdit", "Latte")]
    + ["AceStepTransformer1DModel"],
)
@pytest.mark.filterwarnings("ignore")
def test_more_families_equal_the_oracle(name: str) -> None:
    pytest.importorskip("diffusers")
    from many_case import ROWS, call_of, many_model

    model = many_model(name)
    calls = [((), call_of(model, ROWS[name]["inputs"], seed)) for seed in range(3)]
    attentions = attentions_of([model], "cross_attn" if "AceStep" in name else "attn2")
    assert attentions[0]
    outputs, report = in_session(compiled(model, schedule="tgate", gate=1), calls)
    assert [entry.realised is not None for entry in report.entries] == [False, True, True]
    rows = (None, Span(0, 1), Span(0, 1))
    assert same(outputs, CrossAttentionOracle(model, attentions).run(rows, calls))


def test_predictors_weigh_what_was_kept() -> None:
    model = cross_denoiser()
    calls = calls_of(model)
    schedule = tgate(gate=2, predictor="linear")
    outputs, _ = in_session(compiled(model, schedule=schedule), calls)
    found, inputs = outlined(model, calls[0])
    plan = plan_span(found, whole(4))
    refresh = refresh_program(found.finer, [plan])
    (_, one), (_, two) = (run(refresh, found, *outlined(model, c)[1]) for c in calls[:2])
    at_three = [torch.add(3.0 * b, -2.0 * a) for a, b in zip(one, two, strict=True)]
    cached = cached_program(found.finer, plan)
    expected, _ = run(cached, found, *outlined(model, calls[3])[1], *at_three)
    torch.testing.assert_close(tensors(outputs)[3], expected[0])
    assert inputs


def test_costs_and_bytes_are_those_of_what_is_run() -> None:
    model = cross_denoiser()
    args, kwargs = model.inputs()
    options = {"schedule": "tgate", "gate": 2, "steps": STEPS}
    report = deltapass.explain(model, *args, options=options, **kwargs)
    assert report.schedule == "R R xd4x4"
    assert "cross-attention) reused, the blocks run on without it" in report.legend[-1]
    assert [(cost.name, cost.runs, cost.blocks) for cost in report.variants] == [
        ("refresh", 1, 4),
        ("refresh_0_4_cross_attention", 1, 4),
        ("cached_0_4_cross_attention", 4, 4),
    ]
    assert report.buffer_bytes == 4 * B * T * D * 4
    run_ = compiled(model, **options)
    with torch.no_grad(), deltapass.session(steps=STEPS) as session:
        for step in range(2):
            session.step(step)
            args, kwargs = model.inputs(step / STEPS, step)
            run_(*args, **kwargs)
        assert session.nbytes == report.buffer_bytes


def test_another_prompt_refreshes() -> None:
    model = cross_denoiser()
    run_ = compiled(model, schedule="tgate", gate=2)
    calls = calls_of(model)
    with torch.no_grad(), deltapass.session(steps=STEPS) as session:
        for step, ((sample, time, text), _) in enumerate(calls):
            session.step(step)
            given = text + 1 if step == 3 else text
            output = run_(sample, time, given)
            if step == 3:
                assert torch.equal(output, model(sample, time, given))
    entries = session.report().entries
    assert [entry.realised is not None for entry in entries][:4] == [False, False, True, False]
    assert entries[3].cause is deltapass.Cause.CONDITIONING


def test_bundles_are_refused_before_any_work(tmp_path: Any) -> None:
    rows = ExplicitSchedule((None, whole(4)))
    for options in ({"gate": 2}, {"schedule": rows}, {"keeps": "cross-attention"}):
        with pytest.raises(ExportError, match="the schedule keeps cross-attention"):
            deltapass.export(None, (), {}, tmp_path / "bundle", **options)  # type: ignore[arg-type]
    assert not list(tmp_path.iterdir())
