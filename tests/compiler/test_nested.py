"""compiler/nested.py: blocks of U-shaped models lie inside each other."""

from __future__ import annotations

import functools
import itertools

import pytest
import torch
from driving import compiled, in_session
from memory_bundle import memory_bundle
from models import C, noise, randomise
from models.streams import Call
from models.unet import NARROW, WIDE, UNetDenoiser
from nested_oracle import NestedOracle
from torch import Tensor, nn

import deltapass
from deltapass.backend import analyse
from deltapass.compiler.outline import Outline
from deltapass.compiler.plan import SpanFinder
from deltapass.compiler.rewrite import cached_program
from deltapass.compiler.tracing import trace
from deltapass.errors import NoBlocksError, StreamError
from deltapass.exporting.segments import segmented
from deltapass.schedule.rules import Span

STEPS = 6
WHOLE = Span(0, 4)


def model_of(**options: bool) -> UNetDenoiser:
    return randomise(UNetDenoiser(**options))


@functools.cache
def outlined(**options: bool) -> Outline:
    model = model_of(**options)
    args, kwargs = model.inputs(500.0)
    return analyse(*trace(model, args, kwargs))


def calls_of(model: UNetDenoiser) -> list[Call]:
    return [model.inputs(1000.0 - 100 * step, seed=step) for step in range(STEPS)]


def shapes(found: Outline) -> list[tuple[tuple[int, ...], ...]]:
    """Channels and height where each block begins and ends."""
    specs = found.program.specs
    return [
        tuple(specs[name].shape[1:3] for name in (ends.live_in, ends.live_out))
        for ends in found.stack.ends
    ]


# ---- finding them ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options", [{}, {"late": True}, {"residuals": True}, {"filtered": True}], ids=str
)
def test_every_skip_has_a_block(options: dict[str, bool]) -> None:
    found = outlined(**options)
    assert shapes(found) == [
        ((8, 8), (8, 8)),
        ((8, 8), (16, 8)),
        ((8, 4), (16, 4)),
        ((16, 4), (16, 4)),
    ]
    assert str(found.stack).startswith("4 nested blocks (")


def test_blocks_lie_inside_each_other_and_share_the_model_without_rest() -> None:
    found = outlined()
    blocks = found.stack.blocks
    for outer, inner in itertools.pairwise(blocks):
        assert outer.first < inner.first < inner.stop < outer.stop
    labels = [call.label for call in found.program.calls]
    assert labels == ["prologue", *["block"] * 7, "epilogue"]
    assert found.block_calls == ((1, 7), (2, 6), (3, 5), (4,))
    ends = (found.program.calls[at].body.macs.full for at in (0, -1))
    assert sum(own.full for own in found.block_macs) + sum(ends) == found.program.macs.full


def test_outline_of_nested_blocks_is_the_model() -> None:
    model = model_of()
    args, kwargs = model.inputs(500.0)
    run = compiled(model, schedule="none")
    with torch.no_grad():
        assert torch.equal(run(*args, **kwargs), model(*args, **kwargs))


class Plain(nn.Module):
    """Convolutions in a row, or with the sample joined in again before the last, cheap one."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind
        self.first, self.second = nn.Conv2d(C, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
        self.last = nn.Conv2d(16 if kind == "small" else 8, C, 15, padding=7)

    def forward(self, sample: Tensor, timestep: Tensor) -> Tensor:
        x = self.first(sample * timestep[:, None, None, None])
        y = torch.tanh(self.second(x))
        return self.last(torch.cat([y, x], dim=1) if self.kind == "small" else y + x)


@pytest.mark.parametrize("kind", ["added", "small"])
def test_branch_that_is_added_or_holds_little_is_none(kind: str) -> None:
    model = randomise(Plain(kind))
    with pytest.raises(NoBlocksError):
        analyse(*trace(model, (noise(0, 2, C, 8, 8), torch.ones(2)), {}))


def test_value_that_leaves_the_inner_part_makes_it_none() -> None:
    """What the middle gives is a result too: only parts that it lies outside of can be left out."""
    with pytest.raises(NoBlocksError):
        outlined(returned=True)


# ---- spans of them -----------------------------------------------------------------------------


def test_span_lies_between_the_ends_of_its_first_block() -> None:
    finder, stack = SpanFinder(outlined()), outlined().stack
    for start in (0, 3):
        (stream,) = finder.plan(Span(start, 4)).streams
        ends = stack.ends[start]
        assert (stream.live_in, stream.live_out) == (ends.live_in, ends.live_out)


def test_ends_of_other_shapes_shrink_the_span_to_the_next_that_agree() -> None:
    plan = SpanFinder(outlined()).plan(Span(1, 4))
    assert plan.span == Span(3, 4)
    assert "is float32[2, 16, 8, 8], and what enters is float32[2, 8, 8, 8]" in plan.reason


@pytest.mark.parametrize("span", [Span(0, 1), Span(0, 3), Span(1, 3)], ids=str)
def test_span_without_the_innermost_block_is_refused(span: Span) -> None:
    with pytest.raises(StreamError, match="blocks lie inside each other") as caught:
        SpanFinder(outlined()).plan(span)
    assert "'delta-cache-deep', 'cached_blocks': 4" in caught.value.remedy


def test_segments_are_cut_where_the_inner_part_begins_and_ends() -> None:
    labels = [call.label for call in segmented(outlined(), [WHOLE, Span(3, 4)]).calls]
    assert labels == ["prologue", "blocks_0_3", "blocks_3_4", "up_3_0", "epilogue"]


# ---- running them ------------------------------------------------------------------------------


@pytest.mark.parametrize("start", [0, 3])
def test_trajectory_equals_the_oracle(start: int) -> None:
    model = model_of()
    calls = calls_of(model)
    run = compiled(model, schedule="delta-cache-deep", cached_blocks=4 - start)
    outputs, report = in_session(run, calls)
    table = (None, Span(start, 4)) * (STEPS // 2)
    assert tuple(entry.realised for entry in report.entries) == table
    expected = NestedOracle(model, model.joins).run(table, calls)
    assert all(map(torch.equal, outputs, expected))


@pytest.mark.parametrize("start", [0, 1, 3])
def test_features_equal_the_oracle_where_shapes_differ_too(start: int) -> None:
    model = model_of()
    calls = calls_of(model)
    run = compiled(model, schedule="deepcache", cached_blocks=4 - start, strict=True)
    outputs, report = in_session(run, calls)
    table = (None, Span(start, 4, "feature")) * (STEPS // 2)
    assert tuple(entry.realised for entry in report.entries) == table
    expected = NestedOracle(model, model.joins, (NARROW, WIDE, WIDE, WIDE)).run(table, calls)
    assert all(map(torch.equal, outputs, expected))


def test_a_feature_skips_what_lies_inside_and_no_skip() -> None:
    found = outlined()
    plan = SpanFinder(found).plan(Span(1, 4, "feature"))
    assert [stream.live_out for stream in plan.streams] == [found.stack.ends[1].live_out]
    left = [call.label for call in cached_program(found.program, plan).calls]
    assert left == ["prologue", "block", "predict_0", "block", "epilogue"]
    with pytest.raises(StreamError, match="blocks lie inside each other"):
        SpanFinder(found).plan(Span(0, 3, "feature"))


def test_inductor_follows_the_oracle() -> None:
    model = model_of()
    calls = calls_of(model)
    outputs, report = in_session(
        compiled(model, schedule="delta-cache-deep", cached_blocks=4, lowering="inductor"), calls
    )
    table = tuple(entry.realised for entry in report.entries)
    assert table == (None, WHOLE) * (STEPS // 2)
    expected = NestedOracle(model, model.joins).run(table, calls)
    for ours, theirs in zip(outputs, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


def test_residuals_of_a_control_network_belong_to_the_step() -> None:
    """They are others at every step, are added to the skips anew, and drop no delta."""
    model = model_of(residuals=True)
    calls = calls_of(model)
    outputs, report = in_session(
        compiled(model, schedule="delta-cache-deep", cached_blocks=4), calls
    )
    table = tuple(entry.realised for entry in report.entries)
    assert table == (None, WHOLE) * (STEPS // 2)
    expected = NestedOracle(model, model.joins, entering=model.stem).run(table, calls)
    assert all(map(torch.equal, outputs, expected))


@pytest.mark.parametrize("residuals", [False, True])
def test_bundle_of_nested_blocks_follows_the_oracle(residuals: bool) -> None:
    model = model_of(residuals=residuals)
    calls = calls_of(model)
    bundle = memory_bundle(model, schedule="delta-cache-deep", cached_blocks=4, steps=STEPS)
    outputs, report = in_session(bundle.loaded(), calls)
    table = tuple(entry.realised for entry in report.entries)
    assert table == (None, WHOLE) * (STEPS // 2)
    expected = NestedOracle(model, model.joins, entering=model.stem).run(table, calls)
    for ours, theirs in zip(outputs, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


def test_default_schedule_skips_the_outermost_inner_part() -> None:
    report = deltapass.explain(model_of(), *model_of().inputs(500.0)[0])
    assert set(report.schedule_table) == {None, WHOLE}
    assert report.expected_speedup > 1.3


@pytest.mark.parametrize("share", [0.5, 0.7, 0.95])
def test_budget_chooses_among_the_blocks(share: float) -> None:
    report = deltapass.explain(model_of(), *model_of().inputs(500.0)[0], options={"budget": share})
    spans = {row for row in report.schedule_table if row is not None}
    assert spans <= {WHOLE, Span(3, 4)}
    assert spans
    assert report.share <= share


def test_phase_of_shallow_blocks_refreshes_and_says_so() -> None:
    model = model_of()
    report = deltapass.explain(model, *model.inputs(500.0)[0], options={"preset": "paper"})
    table = report.schedule_table
    assert set(table[12:]) == {None}
    assert Span(3, 4) in table or Span(1, 4) in table
    assert "blocks lie inside each other" in str(report)
