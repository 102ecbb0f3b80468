"""compiler/rewrite.py: variants as lists of calls, and what they compute."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import models
import pytest
import torch
from torch import Tensor, fx, nn

from deltapass.backend import analyse
from deltapass.compiler.capture import capture
from deltapass.compiler.outline import Outline, outline
from deltapass.compiler.plan import SpanPlan, plan_span
from deltapass.compiler.rewrite import (
    cached_program,
    delta_name,
    delta_spec,
    inline,
    refresh_program,
)
from deltapass.compiler.tracing import trace
from deltapass.errors import StreamError
from deltapass.graph.dead_calls import drop_dead_calls
from deltapass.graph.executable import Executable
from deltapass.graph.program import Program, Role, TensorSpec
from deltapass.graph.stack import Block, Stack
from deltapass.graph.verify import verify
from deltapass.schedule.rules import Span

Golden = Callable[[str, str], None]
Traced = tuple[fx.GraphModule, tuple[Any, ...]]
DEEP, SHALLOW = Span(1, 4), Span(0, 3)
ADDED = ("delta", "feature", "predict")  # labels of the calls that the rewrite makes


@functools.cache
def traced(name: str) -> Traced:
    model = models.make(name, depth=4)
    args, kwargs = model.inputs(500.0)
    return trace(model, args, kwargs)


@functools.cache
def outlined(name: str) -> Outline:
    return analyse(*traced(name))


def feature(span: Span) -> Span:
    return Span(span.start, span.stop, "feature")


def span(name: str, wanted: Span) -> SpanPlan:
    return plan_span(outlined(name), wanted)


def refresh(name: str, *spans: Span) -> Program:
    return refresh_program(outlined(name).program, [span(name, wanted) for wanted in spans])


def cached(name: str, wanted: Span, taken: int = 0) -> Program:
    return cached_program(outlined(name).program, span(name, wanted), taken)


def run(program: Program, *arguments: Any) -> tuple[tuple[Any, ...], tuple[Tensor, ...]]:
    """Results and deltas, with every body run eagerly."""
    return Executable(program, lambda body: body.module.forward)(arguments)


def values_of(name: str) -> dict[str, Tensor]:
    """Every value between the calls of the full program."""
    found = outlined(name).program
    names = dict.fromkeys(value for call in found.calls for value in call.outputs)
    everything = replace(found, results=tuple(names))
    return dict(zip(names, run(everything, *traced(name)[1])[0], strict=True))


def labels(program: Program) -> list[str]:
    return [call.label for call in program.calls]


def text(program: Program) -> str:
    """The program, and the code of the bodies that the rewrite made."""
    small = {c.body.name: c.body for c in program.calls if c.label.startswith(ADDED)}
    code = [f"{name}:\n{body.module.code.strip()}" for name, body in small.items()]
    return "\n\n".join([str(program), *code])


# ---- golden texts ------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["adaln", "two_stream"])
def test_refresh_reads_as_its_golden_text(name: str, golden: Golden) -> None:
    golden(f"refresh_{name}", text(refresh(name, DEEP, SHALLOW)))


@pytest.mark.parametrize("taken", [0, 2])
@pytest.mark.parametrize("name", ["adaln", "two_stream"])
def test_cached_program_reads_as_its_golden_text(name: str, taken: int, golden: Golden) -> None:
    golden(f"cached_{name}_taken_{taken}", text(cached(name, SHALLOW, taken)))


@pytest.mark.parametrize("taken", [0, 2])
def test_programs_of_a_feature_read_as_their_golden_text(taken: int, golden: Golden) -> None:
    wanted = Span(1, 3, "feature")
    pair = refresh("two_stream", wanted), cached("two_stream", wanted, taken)
    golden(f"feature_two_stream_taken_{taken}", "\n\n".join(map(text, pair)))


# ---- refresh -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["adaln", "two_stream", "cross_attention"])
def test_refresh_equals_the_graph_bit_for_bit(name: str) -> None:
    module, inputs = traced(name)
    (result,), _ = run(refresh(name, SHALLOW, DEEP), *inputs)
    assert torch.equal(result, module(*inputs)[0])


@pytest.mark.parametrize("name", ["adaln", "two_stream", "cross_attention"])
@pytest.mark.parametrize("wanted", [SHALLOW, DEEP])
def test_deltas_are_live_out_minus_live_in(name: str, wanted: Span) -> None:
    _, deltas = run(refresh(name, wanted), *traced(name)[1])
    values, streams = values_of(name), span(name, wanted).streams
    assert len(deltas) == len(streams)
    for delta, stream in zip(deltas, streams, strict=True):
        assert torch.equal(delta, values[stream.live_out] - values[stream.live_in])


def test_refresh_without_spans_is_the_full_program() -> None:
    program = refresh("adaln")
    assert program.calls == outlined("adaln").program.calls
    assert program.deltas == ()


def test_refresh_adds_one_call_a_stream() -> None:
    program = refresh("two_stream", SHALLOW, DEEP)
    assert labels(program).count("delta") == 3  # the last block drops the text
    assert program.deltas == ("delta_0_3_0", "delta_0_3_1", "delta_1_4_0")


def test_delta_is_taken_right_after_its_live_out() -> None:
    # Otherwise the live-in would stay in memory until the end.
    assert labels(refresh("adaln", SHALLOW)) == [
        *("prologue", "block", "block", "block", "delta", "block", "epilogue")
    ]


def test_refresh_leaves_the_given_program_as_it_was() -> None:
    before = str(outlined("adaln").program)
    refresh("adaln", SHALLOW, DEEP)
    cached("adaln", DEEP)
    assert str(outlined("adaln").program) == before


# ---- cached ------------------------------------------------------------------------------------


@pytest.mark.parametrize("taken", [0, 1, 4])
@pytest.mark.parametrize("wanted", [Span(0, 4), DEEP, SHALLOW, Span(1, 3), Span(2, 3)])
def test_cached_program_lacks_exactly_the_blocks_of_its_span(wanted: Span, taken: int) -> None:
    full, program = outlined("adaln").program, cached("adaln", wanted, taken)
    expected = labels(full)
    expected[1 + wanted.start : 1 + wanted.stop] = [f"predict_{taken}"]
    assert labels(program) == expected


@pytest.mark.parametrize("wanted", [DEEP, SHALLOW])
def test_cached_two_stream_program_predicts_every_stream(wanted: Span) -> None:
    program = cached("two_stream", wanted)
    assert labels(program).count("block") == 1
    assert labels(program).count("predict_0") == len(span("two_stream", wanted).streams)


def test_weights_of_skipped_blocks_are_read_by_nobody() -> None:
    found = outlined("adaln")
    program = cached("adaln", DEEP)
    read = {name for call in program.calls for name in call.inputs}
    for index, (at,) in enumerate(found.block_calls):
        own = found.program.weights & set(found.program.calls[at].inputs)
        assert len(own) == 12
        assert own & read == (set() if DEEP.start <= index < DEEP.stop else own)


def test_cached_program_costs_less_by_the_skipped_blocks() -> None:
    full, skipped = outlined("adaln").program.macs, outlined("adaln").block_macs[1:4]
    assert cached("adaln", DEEP).macs.full == full.full - sum(macs.full for macs in skipped)


def test_reuse_takes_one_buffer_a_stream() -> None:
    added = cached("two_stream", SHALLOW).inputs[len(outlined("two_stream").program.inputs) :]
    assert added == ("delta_0_3_0", "delta_0_3_1")


def test_weighted_deltas_come_newest_first_and_their_weights_last() -> None:
    program = cached("two_stream", SHALLOW, 3)
    added = program.inputs[len(outlined("two_stream").program.inputs) :]
    newest = ("delta_0_3_0", "delta_0_3_1")
    older = [tuple(f"{name}_before_{age}" for name in newest) for age in (1, 2)]
    assert added == (*newest, *older[0], *older[1], "weights_0", "weights_1")
    weights = program.specs["weights_1"]
    assert (weights.shape, weights.dtype) == ((3,), torch.float32)


@pytest.mark.parametrize("name", ["adaln", "two_stream", "cross_attention"])
def test_cached_program_on_fresh_deltas_is_nearly_the_model(name: str) -> None:
    inputs = traced(name)[1]
    (expected,), deltas = run(refresh(name, SHALLOW), *inputs)
    (actual,), _ = run(cached(name, SHALLOW), *inputs, *deltas)
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-5)


def test_cached_program_adds_the_delta_it_is_given() -> None:
    inputs = traced("adaln")[1]
    stream = span("adaln", DEEP).streams[0]
    watched = replace(cached("adaln", DEEP), results=(stream.live_in, stream.live_out))
    delta = torch.randn(stream.spec.shape)
    (live_in, live_out), _ = run(watched, *inputs, delta)
    assert torch.equal(live_in, values_of("adaln")[stream.live_in])
    assert torch.equal(live_out, live_in + delta)


@pytest.mark.parametrize("taken", [1, 2, 3, 4])
def test_deltas_are_summed_by_their_weights(taken: int) -> None:
    inputs = traced("adaln")[1]
    stream = span("adaln", DEEP).streams[0]
    watched = replace(cached("adaln", DEEP, taken), results=(stream.live_in, stream.live_out))
    deltas, weights = torch.randn(taken, *stream.spec.shape), torch.randn(taken)
    (live_in, live_out), _ = run(watched, *inputs, *deltas, weights)
    expected = sum(weights[at] * deltas[at] for at in range(taken)) + live_in
    assert torch.equal(live_out, expected)


def test_weighted_sums_of_half_precision_read_float32() -> None:
    model = models.make("adaln", depth=2).bfloat16()
    (sample, timestep), _ = model.inputs(500.0)
    # The sinusoidal features are float32; the toy has no cast, so autocast stands in for it.
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = analyse(*trace(model, (sample.bfloat16(), timestep), {}))
    program = cached_program(found.program, plan_span(found, Span(1, 2)), 2)
    (predict,) = [call.body for call in program.calls if call.label == "predict_2"]
    assert {spec.dtype for spec in predict.inputs[:3]} == {torch.float32}  # the weights too
    assert {spec.dtype for spec in (predict.inputs[3], *predict.outputs)} == {torch.bfloat16}


# ---- features ----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["adaln", "two_stream", "cross_attention"])
@pytest.mark.parametrize("wanted", [SHALLOW, DEEP])
def test_features_are_the_live_outs(name: str, wanted: Span) -> None:
    (result,), kept = run(refresh(name, feature(wanted)), *traced(name)[1])
    assert torch.equal(result, traced(name)[0](*traced(name)[1])[0])
    values, streams = values_of(name), span(name, feature(wanted)).streams
    assert {stream.live_out for stream in streams} == {
        stream.live_out for stream in span(name, wanted).streams
    }
    for given, stream in zip(kept, streams, strict=True):
        assert torch.equal(given, values[stream.live_out])


@pytest.mark.parametrize("name", ["adaln", "two_stream", "cross_attention"])
@pytest.mark.parametrize("wanted", [SHALLOW, DEEP, Span(1, 3)])
def test_fresh_features_give_the_model_bit_for_bit(name: str, wanted: Span) -> None:
    inputs = traced(name)[1]
    (expected,), kept = run(refresh(name, feature(wanted)), *inputs)
    (actual,), _ = run(cached(name, feature(wanted)), *inputs, *kept)
    assert torch.equal(actual, expected)


@pytest.mark.parametrize("taken", [0, 1, 4])
@pytest.mark.parametrize("wanted", [Span(0, 4), DEEP, SHALLOW, Span(1, 3), Span(2, 3)])
def test_blocks_before_a_feature_are_not_run(wanted: Span, taken: int) -> None:
    after = ["block"] * (4 - wanted.stop)
    program = cached("adaln", feature(wanted), taken)
    assert labels(program) == ["prologue", f"predict_{taken}", *after, "epilogue"]


@pytest.mark.parametrize("taken", [1, 2, 3, 4])
def test_features_are_summed_by_their_weights(taken: int) -> None:
    stream = span("adaln", feature(DEEP)).streams[0]
    watched = replace(cached("adaln", feature(DEEP), taken), results=(stream.live_out,))
    kept, weights = torch.randn(taken, *stream.spec.shape), torch.randn(taken)
    (live_out,), _ = run(watched, *traced("adaln")[1], *kept, weights)
    assert torch.equal(live_out, sum(weights[at] * kept[at] for at in range(taken)))


def test_neither_a_feature_nor_what_is_made_of_it_shares_memory() -> None:
    # Results of a model may be views of a live-out, and a sampler may write into them.
    inputs = traced("adaln")[1]
    (stream,) = span("adaln", feature(DEEP)).streams
    watched = replace(refresh("adaln", feature(DEEP)), results=(stream.live_out,))
    (live_out,), (kept,) = run(watched, *inputs)
    taken = replace(cached("adaln", feature(DEEP)), results=(stream.live_out,))
    (given,), _ = run(taken, *inputs, kept)
    assert torch.equal(given, live_out)
    assert len({value.data_ptr() for value in (live_out, kept, given)}) == 3


def test_delta_and_feature_of_one_span_have_names_of_their_own() -> None:
    program = refresh("adaln", DEEP, feature(DEEP))
    assert program.deltas == ("delta_1_4_0", "feature_1_4_0")
    assert program.name == "refresh_1_4_1_4_feature"


# ---- layouts -----------------------------------------------------------------------------------


def joined_block(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Hands on slices of one joined tensor: they have gaps."""
    both = torch.cat([y, x], dim=1)
    both = both + torch.tanh(both)
    return both[:, 3:], both[:, :3]


def built(before: Callable[..., Any], block: Callable[..., Any], *given: Tensor) -> Outline:
    """The outline of three hand-made blocks on the values that `before` gives."""
    graph = fx.Graph()
    tracer = fx.proxy.GraphAppendingTracer(graph)
    names = [graph.placeholder(f"in_{at}") for at in range(len(given))]
    values: Any = before(*[fx.Proxy(name, tracer) for name in names])
    blocks = []
    for index in range(3):
        first = len(graph.nodes)
        values = block(*values)
        blocks.append(Block(name=f"block.{index}", first=first, stop=len(graph.nodes)))
    graph.output(tuple(value.cos().node for value in values))
    captured = capture(fx.GraphModule(nn.Module(), graph), given)
    return outline(captured, Stack(blocks=tuple(blocks), found_by="hand"))


def joined() -> Outline:
    image, text = torch.randn(2, 5, 4), torch.randn(2, 3, 4)
    return built(lambda x, y: (x.sin(), y.sin()), joined_block, image, text)


def test_live_out_with_gaps_gets_its_own_strides_back() -> None:
    found = joined()
    plan = plan_span(found, Span(0, 2))
    assert [stream.spec.stride for stream in plan.streams] == [(32, 4, 1), (32, 4, 1)]
    program = cached_program(found.program, plan, 0)
    watched = replace(program, results=tuple(stream.live_out for stream in plan.streams))
    deltas = [torch.randn(stream.spec.shape) for stream in plan.streams]
    given, _ = run(watched, torch.randn(2, 5, 4), torch.randn(2, 3, 4), *deltas)
    assert [TensorSpec.of(value) for value in given] == [stream.spec for stream in plan.streams]


def test_delta_of_a_live_out_with_gaps_has_none() -> None:
    found = joined()
    plan = plan_span(found, Span(0, 2))
    specs = [delta_spec(found.program, stream) for stream in plan.streams]
    assert [spec.stride for spec in specs] == [(20, 4, 1), (12, 4, 1)]
    _, deltas = run(
        refresh_program(found.program, [plan]), torch.ones(2, 5, 4), torch.ones(2, 3, 4)
    )
    assert [TensorSpec.of(delta) for delta in deltas] == specs
    assert sum(delta.untyped_storage().nbytes() for delta in deltas) == plan.nbytes


def test_feature_of_a_live_out_with_gaps_has_none_and_is_laid_out_as_it_was() -> None:
    found = joined()
    plan = plan_span(found, Span(0, 2, "feature"))
    inputs = torch.randn(2, 5, 4), torch.randn(2, 3, 4)
    _, kept = run(refresh_program(found.program, [plan]), *inputs)
    assert [value.stride() for value in kept] == [(20, 4, 1), (12, 4, 1)]
    assert sum(value.untyped_storage().nbytes() for value in kept) == plan.nbytes
    outs = tuple(stream.live_out for stream in plan.streams)
    given, _ = run(replace(cached_program(found.program, plan), results=outs), *inputs, *kept)
    assert [TensorSpec.of(value) for value in given] == [stream.spec for stream in plan.streams]
    assert all(torch.equal(one, other) for one, other in zip(given, kept, strict=True))


def test_live_in_of_other_strides_does_not_change_the_live_outs() -> None:
    # The first live-in is a transposed view, as of a patch embedding.
    found = built(
        lambda x: (x.sin().transpose(1, 2),),
        lambda x: ((x + torch.tanh(x)).contiguous(),),
        torch.randn(2, 4, 5),
    )
    plan = plan_span(found, Span(0, 2))
    (stream,) = plan.streams
    assert found.program.specs[stream.live_in].stride == (20, 1, 5)
    watched = replace(cached_program(found.program, plan, 0), results=(stream.live_out,))
    delta = torch.empty_strided((2, 5, 4), delta_spec(found.program, stream).stride).normal_()
    (live_out,), _ = run(watched, torch.randn(2, 4, 5), delta)
    assert live_out.stride() == (20, 4, 1)


def test_expanded_live_out_is_refused() -> None:
    # It has no memory of its own into which a sum could be laid.
    found = built(
        lambda x: (x.sin().expand(2, 5, 4),),
        lambda x: (torch.tanh(x[:1]).expand(2, 5, 4),),
        torch.randn(1, 5, 4),
    )
    with pytest.raises(StreamError, match="is an expanded view"):
        plan_span(found, Span(0, 2))


# ---- names, dead calls, inlining ---------------------------------------------------------------


def test_delta_is_named_by_its_span_and_stream() -> None:
    assert delta_name(span("two_stream", SHALLOW), 1) == "delta_0_3_1"


def test_calls_that_no_result_needs_are_dropped() -> None:
    program = outlined("adaln").program
    early = replace(program, results=(program.calls[2].outputs[0],))
    assert labels(drop_dead_calls(early)) == ["prologue", "block", "block"]


def test_needed_calls_are_kept() -> None:
    program = outlined("adaln").program
    assert drop_dead_calls(program) == program


def variants() -> dict[str, Program]:
    return {
        "full": outlined("two_stream").program,
        "refresh": refresh("two_stream", SHALLOW, DEEP),
        "cached": cached("two_stream", SHALLOW),
        "weighted": cached("two_stream", SHALLOW, 2),
        "features": refresh("two_stream", feature(SHALLOW), DEEP),
        "feature": cached("two_stream", feature(SHALLOW)),
        "weighted features": cached("two_stream", feature(SHALLOW), 2),
    }


VARIANTS = ["full", "refresh", "cached", "weighted", "features", "feature", "weighted features"]


@pytest.mark.parametrize("name", VARIANTS)
def test_inlined_program_equals_the_calls_bit_for_bit(name: str) -> None:
    program = variants()[name]
    inputs = traced("two_stream")[1]
    added = program.inputs[len(inputs) :]
    buffers = [torch.randn(program.specs[buffer].shape) for buffer in added]
    results, deltas = run(program, *inputs, *buffers)
    whole = inline(program).module(*inputs, *buffers)
    assert len(whole) == len(results) + len(deltas)
    assert all(torch.equal(a, b) for a, b in zip(whole, (*results, *deltas), strict=True))


@pytest.mark.parametrize("name", VARIANTS)
def test_inlined_program_has_the_operations_and_layouts_of_the_calls(name: str) -> None:
    program = variants()[name]
    body = inline(program)
    assert body.operations == program.operations
    assert body.macs == program.macs
    names = (*program.value_results, *program.deltas)
    assert body.outputs == tuple(program.specs[value] for value in names)


def test_inlined_variants_have_keys_of_their_own() -> None:
    assert len({inline(program).key for program in variants().values()}) == 7


def test_variants_pass_the_check() -> None:
    for program in variants().values():
        verify(program)


def test_variants_keep_the_models_inputs_first() -> None:
    names = tuple(given.name for given in outlined("two_stream").captured.inputs)
    roles = {given.role for given in outlined("two_stream").captured.inputs}
    assert Role.WEIGHT in roles
    for program in variants().values():
        assert program.inputs[: len(names)] == names
