"""compiler/plan.py: which deltas a refresh emits, what they take, and which spans shrink."""

from __future__ import annotations

import ast
import functools
from typing import Any

import models
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from models.adaln import SideValueDenoiser
from torch import Tensor, fx

from deltapass.backend import analyse
from deltapass.compiler.capture import capture
from deltapass.compiler.outline import Outline, outline
from deltapass.compiler.plan import Plan, make_plan, plan_span
from deltapass.compiler.settle import plan_for
from deltapass.compiler.tracing import trace
from deltapass.errors import NoBlocksError, SmallSpanError, StreamError, TooManyCachedBlocksError
from deltapass.graph.stack import Block, Stack
from deltapass.options import parse_options
from deltapass.schedule.emissions import emissions, held_deltas, reads_after
from deltapass.schedule.explicit import ExplicitSchedule
from deltapass.schedule.presets import delta_dit, never
from deltapass.schedule.rules import Schedule, Span, Table
from deltapass.schedule.weights import Weights

DEEP, SHALLOW = Span(2, 6), Span(0, 4)
STREAM = models.B * models.T * models.D * 4  # bytes of an image stream in float32
TEXT = models.B * models.S * models.D * 4

BOTH = frozenset({DEEP, SHALLOW})
ONLY_DEEP, ONLY_SHALLOW, NOTHING = frozenset({DEEP}), frozenset({SHALLOW}), frozenset()

tables = st.lists(st.sampled_from([None, None, DEEP, SHALLOW, Span(1, 3)]), max_size=24).map(
    lambda rows: (None, *rows)
)
depths = st.integers(1, 4)


@functools.cache
def outlined(name: str) -> Outline:
    model = models.make(name)
    args, kwargs = model.inputs(500.0)
    return analyse(*trace(model, args, kwargs))


def table_of(marks: str) -> Table:
    """R refreshes, d skips the deep blocks, s the shallow ones."""
    return tuple({"R": None, "d": DEEP, "s": SHALLOW}[mark] for mark in marks)


# ---- emissions ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("marks", "depth", "emitted"),
    [
        ("RdRd", 1, [ONLY_DEEP, NOTHING, ONLY_DEEP, NOTHING]),
        ("RdRs", 1, [ONLY_DEEP, NOTHING, ONLY_SHALLOW, NOTHING]),
        ("Rds", 1, [BOTH, NOTHING, NOTHING]),  # the boundary lies within an interval
        ("RRRd", 1, [NOTHING, NOTHING, ONLY_DEEP, NOTHING]),
        ("RdR", 1, [ONLY_DEEP, NOTHING, NOTHING]),
        ("RRd", 2, [ONLY_DEEP, ONLY_DEEP, NOTHING]),
        ("RdRs", 2, [BOTH, NOTHING, ONLY_SHALLOW, NOTHING]),
        ("RRRRd", 2, [NOTHING, NOTHING, ONLY_DEEP, ONLY_DEEP, NOTHING]),
        ("RRR", 2, [NOTHING] * 3),
    ],
)
def test_refresh_emits_what_later_steps_read(
    marks: str, depth: int, emitted: list[frozenset[Span]]
) -> None:
    assert list(emissions(table_of(marks), [depth] * len(marks))) == emitted


def test_look_ahead_reaches_over_the_boundary_of_delta_dit() -> None:
    schedule = delta_dit(interval=3, boundary=5, cached_blocks=4)
    table = schedule.table(9, 6)
    assert table == table_of("RddRdsRss")
    assert emissions(table, schedule.depths(table))[3] == BOTH
    assert emissions(table, schedule.depths(table))[6] == ONLY_SHALLOW


@given(table=tables, depth=depths)
def test_longer_memory_never_emits_less(table: Table, depth: int) -> None:
    less, more = (emissions(table, [d] * len(table)) for d in (depth, depth + 1))
    assert all(one <= two for one, two in zip(less, more, strict=True))


# ---- held deltas and their bytes ---------------------------------------------------------------


def test_delta_is_held_until_it_is_last_read() -> None:
    held = held_deltas(table_of("RdRdsRsR"), [1] * 8)
    assert [len(spans) for spans in held] == [1, 0, 2, 1, 0, 1, 0, 0]


def test_two_deltas_are_held_from_the_second_refresh_on_if_the_last_two_are_read() -> None:
    held = held_deltas(table_of("RdRdRd"), [2] * 6)
    assert held[:5] == ({DEEP: 1}, {DEEP: 1}, {DEEP: 2}, {DEEP: 1}, {DEEP: 2})


@given(table=tables, depth=depths)
def test_never_more_is_held_than_is_read(table: Table, depth: int) -> None:
    each = [depth] * len(table)
    for spans, reads in zip(held_deltas(table, each), reads_after(table, each), strict=True):
        assert all(1 <= count <= reads[span] <= depth for span, count in spans.items())


@given(table=tables, depth=depths)
def test_nothing_is_held_in_the_end(table: Table, depth: int) -> None:
    assert held_deltas(table, [depth] * len(table))[-1] == {}


def plan(name: str, schedule: Schedule | ExplicitSchedule) -> Plan:
    return make_plan(outlined(name), schedule)


@pytest.mark.parametrize(
    ("marks", "predictor", "deltas"),
    [
        ("RdRd", "reuse", 1),
        ("Rds", "reuse", 2),
        ("RdRs", "reuse", 1),
        ("RdRd", "linear", 2),
        ("RdRds", "linear", 4),
        ("RRR", "linear", 0),
        ("RRRRRd", "quadratic", 3),
        ("RdRdRd", "chebyshev", 4),  # the coefficients, however many refreshes there were
        ("RdRd", "chebyshev", 2),
        ("RR", "reuse", 0),
    ],
)
def test_peak_bytes_on_a_table(marks: str, predictor: str, deltas: int) -> None:
    made = plan("adaln", delta_dit(cached_blocks=4, predictor=predictor))
    assert made.buffer_bytes(table_of(marks)) == deltas * STREAM


@pytest.mark.parametrize(("predictor", "deltas"), [("reuse", 1), ("linear", 2), ("chebyshev", 4)])
def test_bytes_without_a_table_are_those_of_all_spans(predictor: str, deltas: int) -> None:
    made = plan("adaln", delta_dit(cached_blocks=4, predictor=predictor))
    assert made.buffer_bytes() == 2 * STREAM * deltas


def test_weights_of_rows_count_with_the_deltas_they_read() -> None:
    table = table_of("RRRRd")
    weights = (None, None, None, None, Weights(((1.5, -0.75, 0.25),)))
    made = plan("adaln", ExplicitSchedule(table, "reuse", weights))
    assert made.buffer_bytes(table) == 3 * STREAM


def test_two_streams_take_the_bytes_of_both() -> None:
    spans = plan("two_stream", delta_dit(cached_blocks=4)).spans
    assert spans[SHALLOW].nbytes == STREAM + TEXT
    assert spans[DEEP].nbytes == STREAM  # the last block drops the text


def test_schedule_that_never_caches_has_no_spans_and_no_bytes() -> None:
    made = plan("adaln", never())
    assert dict(made.spans) == {}
    assert made.buffer_bytes() == made.buffer_bytes(table_of("RRR")) == 0


# ---- spans -------------------------------------------------------------------------------------


def test_span_of_one_stream_goes_from_live_in_to_live_out() -> None:
    found = plan_span(outlined("adaln"), DEEP)
    (stream,) = found.streams
    calls = [outlined("adaln").program.calls[at] for (at,) in outlined("adaln").block_calls]
    assert stream.live_in in calls[2].inputs
    assert (stream.live_out,) == calls[5].outputs
    assert stream.spec == outlined("adaln").program.specs[stream.live_out]
    assert (found.span, found.wanted, found.reason) == (DEEP, DEEP, "")


@pytest.mark.parametrize("span", [SHALLOW, Span(1, 5), Span(3, 4)])
def test_two_streams_have_two_deltas_inside_the_stack(span: Span) -> None:
    shapes = [stream.spec.shape[1] for stream in plan_span(outlined("two_stream"), span).streams]
    assert sorted(shapes) == [models.S, models.T]


@pytest.mark.parametrize(
    ("wanted", "possible"),
    [(DEEP, Span(3, 6)), (SHALLOW, Span(0, 2)), (Span(1, 5), Span(3, 5)), (Span(3, 6), Span(3, 6))],
)
def test_span_shrinks_until_the_side_value_is_outside(wanted: Span, possible: Span) -> None:
    found = plan_span(outlined("side_value"), wanted)
    assert (found.wanted, found.span) == (wanted, possible)
    assert bool(found.reason) == (wanted != possible)


def test_reason_names_the_value_and_the_wanted_span() -> None:
    reason = plan_span(outlined("side_value"), DEEP).reason
    assert reason.startswith("value 'value_5' leaves blocks 2..5 and")


def test_span_shrinks_round_a_long_skip() -> None:
    found = plan_span(outlined("long_skip"), DEEP)
    assert found.span == Span(3, 6)
    assert found.reason


def test_long_skips_out_of_a_span_are_deltas_of_their_own() -> None:
    # Blocks 0 and 1 hand their outputs to blocks 5 and 4; they lie on the residual stream.
    found = plan_span(outlined("long_skip"), Span(0, 3))
    assert (found.span, len(found.streams)) == (Span(0, 3), 3)
    assert len({stream.live_in for stream in found.streams}) == 1
    assert found.nbytes == 3 * STREAM


def test_span_that_cannot_shrink_is_refused_whole() -> None:
    with pytest.raises(StreamError, match=r"leaves blocks 2\.\.2 and"):
        plan_span(outlined("side_value"), Span(2, 3))


def test_the_remedy_of_a_refused_span_is_a_schedule_that_can_be_followed() -> None:
    with pytest.raises(StreamError) as refused:
        plan_span(outlined("side_value"), Span(2, 3))
    remedy = refused.value.remedy
    assert remedy.startswith("Blocks 3..5 can be cached: give options=")
    options = parse_options(ast.literal_eval(remedy.partition("options=")[2]))
    assert list(plan_for(outlined("side_value"), options).spans) == [Span(3, 6)]


def test_plan_keeps_the_spans_that_can_be_cached() -> None:
    rows = ExplicitSchedule((None, Span(2, 3), None, SHALLOW))
    made = plan("side_value", rows)
    assert {wanted: made.spans[wanted].span for wanted in made.spans} == {SHALLOW: Span(0, 2)}
    assert [str(error) for error in made.dropped.values()] == [str(refusal(Span(2, 3)))]
    assert list(made.dropped) == [Span(2, 3)]
    assert made.realised(rows.rows) == (None, None, None, Span(0, 2))


def refusal(wanted: Span) -> StreamError:
    with pytest.raises(StreamError) as refused:
        plan_span(outlined("side_value"), wanted)
    return refused.value


def test_plan_is_refused_if_no_span_is_left() -> None:
    rows = ExplicitSchedule((None, Span(2, 3), None, Span(2, 3)))
    with pytest.raises(StreamError, match=r"leaves blocks 2\.\.2 and"):
        plan("side_value", rows)


@pytest.mark.parametrize(
    ("rows", "possible"), [((None, SHALLOW), "0..1"), ((None, Span(3, 6), Span(2, 3)), "3..5")]
)
def test_strict_refuses_a_plan_that_lacks_a_part_of_a_span(rows: Table, possible: str) -> None:
    schedule = ExplicitSchedule(rows)
    make_plan(outlined("side_value"), schedule)
    with pytest.raises(StreamError, match=f"Blocks {possible} can be cached: give options"):
        make_plan(outlined("side_value"), schedule, strict=True)


@pytest.mark.parametrize("asked", [{"budget": 0.6}, {"interval": 2}, {"schedule": "reversed"}])
def test_where_no_span_will_do_the_remedy_says_so(asked: dict[str, Any]) -> None:
    found = by_hand(width=64, light=0, sides=True)
    with pytest.raises(StreamError, match="continues no value that enters it") as refused:
        plan_for(found, parse_options(asked))
    assert "No other span of its blocks will do" in refused.value.remedy


# ---- a first or a last block that cannot be paired ---------------------------------------------


class Widening(models.AdaLNBlock):
    """Ends with a norm, and hands its stream on in float64, in which the model goes on."""

    def forward(self, hidden_states: Tensor, conditioning: Tensor) -> Tensor:
        x = super().forward(hidden_states.float(), conditioning.float())
        return torch.nn.functional.layer_norm(x, (models.D,)).double()


class WideningDenoiser(models.AdaLNDenoiser):
    """Its first block changes the type of the stream; only shape pairs it. Its head undoes it."""

    def __init__(self, depth: int = 6) -> None:
        super().__init__(depth=0)
        self.blocks = torch.nn.ModuleList(Widening() for _ in range(depth))

    def head(self, x: Tensor, conditioning: Tensor) -> Tensor:
        return super().head(x.float(), conditioning)


def test_shallow_span_drops_a_first_block_that_cannot_be_paired() -> None:
    model = models.randomise(WideningDenoiser())
    found = analyse(*trace(model, *model.inputs(500.0)))
    for wanted, possible in [
        (Span(0, 4), Span(1, 4)),
        (Span(0, 6), Span(1, 6)),
        (Span(2, 6), Span(2, 6)),
    ]:
        assert plan_span(found, wanted).span == possible
    with pytest.raises(StreamError, match=r"Blocks 1\.\.5 can be cached: .*'delta-cache-deep'"):
        plan_span(found, Span(0, 1))


class Rounding(models.AdaLNDenoiser):
    """Its blocks hand on bfloat16, as under autocast; its embedding gives float32."""

    def __init__(self, depth: int = 6) -> None:
        super().__init__(depth=0)
        self.blocks = torch.nn.ModuleList(RoundingBlock() for _ in range(depth))

    def head(self, x: Tensor, conditioning: Tensor) -> Tensor:
        return super().head(x.float(), conditioning)


class RoundingBlock(models.AdaLNBlock):
    def forward(self, hidden_states: Tensor, conditioning: Tensor) -> Tensor:
        return super().forward(hidden_states.float(), conditioning).bfloat16()


def test_a_stream_of_floats_may_change_its_type() -> None:
    model = models.randomise(Rounding())
    found = analyse(*trace(model, *model.inputs(500.0)))
    for wanted in (Span(0, 4), Span(0, 1), Span(0, 6)):
        plan = plan_span(found, wanted)
        assert plan.span == wanted
        assert plan.nbytes == STREAM  # of a bfloat16 live-out, held in float32


def test_deep_span_drops_a_last_block_that_cannot_be_paired() -> None:
    model = models.randomise(SideValueDenoiser(read=5))
    found = analyse(*trace(model, *model.inputs(500.0)))
    assert plan_span(found, Span(2, 6)).span == Span(2, 5)


def test_the_largest_part_of_a_span_is_cached() -> None:
    # Two values leave it: neither side alone, shortened, would do as well.
    model = models.randomise(SideValueDenoiser(depth=8, read=6))
    found = analyse(*trace(model, *model.inputs(500.0)))
    assert plan_span(found, Span(1, 8)).span == Span(1, 6)
    assert plan_span(found, Span(6, 8)).span == Span(7, 8)


# ---- spans that save nothing -------------------------------------------------------------------


def by_hand(*, width: int, light: int, sides: bool = False) -> Outline:
    """Six blocks, of which the first `light` do the work of a width of 32; the others, of `width`.

    With `sides` each gives a value of its own to the model's output.
    """
    graph = fx.Graph()
    tracer = fx.proxy.GraphAppendingTracer(graph)
    given, small, large = (fx.Proxy(graph.placeholder(f"in_{at}"), tracer) for at in range(3))
    value: Any = torch.sin(given)
    blocks, results = [], []
    for index in range(6):
        first = len(graph.nodes)
        change = torch.tanh(value @ (small if index < light else large))[:, :32]
        value = value + change
        results += [change.node] * sides
        blocks.append(Block(name=f"block.{index}", first=first, stop=len(graph.nodes)))
    graph.output((torch.cos(value).node, *results))
    arguments = (torch.randn(2, 32), torch.randn(32, 32), torch.randn(32, width))
    captured = capture(fx.GraphModule(torch.nn.Module(), graph), arguments)
    return outline(captured, Stack(blocks=tuple(blocks), found_by="hand"))


def test_span_that_saves_next_to_nothing_is_refused_as_such() -> None:
    found = by_hand(width=32_000, light=4)
    with pytest.raises(
        SmallSpanError, match=r"skipping blocks 0\.\.3 would save 0\.2 % of"
    ) as error:
        plan_span(found, Span(0, 4))
    assert "Blocks 0..5 can be cached" in error.value.remedy
    assert plan_span(found, Span(0, 5)).span == Span(0, 5)
    made = make_plan(found, Schedule(cached_blocks=4))
    assert list(made.spans) == [Span(2, 6)]
    assert list(made.dropped) == [Span(0, 4)]


def test_span_outside_the_stack_is_refused() -> None:
    with pytest.raises(NoBlocksError, match=r"blocks 4\.\.6 of a stack of 6"):
        plan_span(outlined("adaln"), Span(4, 7))


def test_more_blocks_than_the_model_has_are_refused() -> None:
    with pytest.raises(TooManyCachedBlocksError, match="cached_blocks is 7 but the model has 6"):
        plan("adaln", delta_dit(cached_blocks=7))


def test_plan_holds_the_spans_of_its_schedule() -> None:
    made = plan("adaln", delta_dit(cached_blocks=4))
    assert list(made.spans) == [DEEP, SHALLOW]
    assert made.blocks == 6
