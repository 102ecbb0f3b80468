"""The variants of a bundle: what it was exported for can be run, and nothing is guessed."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from msgspec.structs import replace

from deltapass.bundles.manifest import BundlePlan, SegmentCall, SpanSpec, VariantSpec
from deltapass.bundles.variants import LoadedVariants
from deltapass.errors import ScheduleError
from deltapass.graph.program import Macs
from deltapass.schedule.explicit import ExplicitSchedule
from deltapass.schedule.rules import Schedule, Span
from deltapass.schedule.weights import Weights

A, B, C = Span(0, 2), Span(1, 3), Span(2, 4)
WANTED = Span(2, 5)  # shrunk to C
STREAMS = {A: 2, B: 1, C: 1}
SUBSETS: tuple[tuple[Span, ...], ...] = ((), (A,), (B,), (A, B), (A, B, C))


def delta_names(spans: Sequence[Span]) -> tuple[str, ...]:
    return tuple(f"delta_{s.start}_{s.stop}_{at}" for s in spans for at in range(STREAMS[s]))


def variant(kind: str, spans: tuple[Span, ...]) -> VariantSpec:
    """A refresh gives x and every delta; a cached variant adds its first delta to x."""
    deltas = delta_names(spans)
    taken = deltas if kind == "cached" else ()
    segment = f"{kind}_{'_'.join(map(str, spans))}"
    outputs = ("out", *(deltas if kind == "refresh" else ()))
    return VariantSpec(
        name=segment,
        kind=kind,
        spans=spans,
        inputs=("x", *taken),
        calls=(SegmentCall(segment=segment, inputs=("x", *taken), outputs=outputs),),
        results=("out",),
        deltas=() if kind == "cached" else deltas,
        macs=Macs(1.0, float(len(outputs))),
    )


VARIANTS = (
    *(variant("refresh", spans) for spans in SUBSETS),
    *(variant("cached", (span,)) for span in (A, B, C)),
)


def run(call: VariantSpec) -> Any:
    """What a segment does: every delta is a number of its own."""
    codes = {name: float(at + 1) for at, name in enumerate(delta_names((A, B, C)))}

    def segment(x: torch.Tensor, *deltas: torch.Tensor) -> list[torch.Tensor]:
        given = [torch.tensor(codes[name]) for name in call.deltas]
        return [x + sum(deltas, torch.zeros(())), *given]

    return segment


@pytest.fixture
def variants() -> LoadedVariants:
    spans = [(A, A), (B, B), (WANTED, C)]
    plan = SimpleNamespace(
        spans=tuple(SpanSpec(wanted=w, span=s, streams=STREAMS[s], bytes=4) for w, s in spans),
        variants=VARIANTS,
        taken=0,
    )
    return LoadedVariants(cast(BundlePlan, plan), {v.name: run(v) for v in VARIANTS})


def given(variants: LoadedVariants, spans: tuple[Span, ...]) -> list[float]:
    _, deltas = variants.refresh(spans)([torch.zeros(())])
    return [float(delta) for delta in deltas]


def test_a_span_is_known_as_wanted_and_as_it_is(variants: LoadedVariants) -> None:
    assert variants.actual(None) is None
    assert variants.actual(A) == A
    assert variants.actual(WANTED) == variants.actual(C) == C
    assert variants.realised((None, WANTED, A, None)) == (None, C, A, None)
    assert [variants.streams(span) for span in (A, B, C)] == [2, 1, 1]


def test_an_unknown_span_is_refused_with_the_known_ones(variants: LoadedVariants) -> None:
    text = r"cannot skip blocks 0\.\.3; it can skip blocks 0\.\.1, blocks 1\.\.2, blocks 2\.\.3"
    with pytest.raises(ScheduleError, match=text):
        variants.actual(Span(0, 4))
    with pytest.raises(ScheduleError, match=r"cannot skip blocks 0\.\.3"):
        variants.realised((None, Span(0, 4)))


def test_a_bundle_without_spans_says_that_it_skips_nothing() -> None:
    plan = SimpleNamespace(spans=(), variants=VARIANTS[:1])
    with pytest.raises(ScheduleError, match="it can skip nothing"):
        LoadedVariants(cast(BundlePlan, plan), {}).actual(A)


@pytest.mark.parametrize(
    ("spans", "codes"),
    [
        ((), []),
        ((A,), [1.0, 2.0]),
        ((B,), [3.0]),
        ((A, B), [1.0, 2.0, 3.0]),
        ((C,), [4.0]),
        ((A, C), [1.0, 2.0, 4.0]),
        ((B, C), [3.0, 4.0]),
        ((A, B, C), [1.0, 2.0, 3.0, 4.0]),
    ],
)
def test_a_refresh_gives_the_deltas_asked_for_and_no_others(
    variants: LoadedVariants, spans: tuple[Span, ...], codes: list[float]
) -> None:
    assert given(variants, spans) == codes


def test_the_smallest_refresh_that_gives_enough_is_taken(variants: LoadedVariants) -> None:
    assert variants.refresh((A,)).macs == variant("refresh", (A,)).macs
    assert variants.refresh((C,)).macs == variant("refresh", (A, B, C)).macs
    results, deltas = variants.refresh((C,))([torch.tensor(5.0)])
    assert [float(result) for result in results] == [5.0] and len(deltas) == 1


def test_deltas_come_in_the_order_in_which_they_are_asked_for(variants: LoadedVariants) -> None:
    assert given(variants, (C, A)) == [4.0, 1.0, 2.0]
    assert given(variants, (B, A)) == [3.0, 1.0, 2.0]


def test_a_cached_variant_is_that_of_its_span(variants: LoadedVariants) -> None:
    for span, count in STREAMS.items():
        deltas = [torch.tensor(0.5)] * count
        results, new = variants.cached(span)([torch.tensor(1.0), *deltas])
        assert float(results[0]) == 1.0 + 0.5 * count and new == ()


def test_a_variant_is_made_once_whoever_asks_first(variants: LoadedVariants) -> None:
    with ThreadPoolExecutor(8) as pool:
        made = list(pool.map(lambda _: variants.refresh((A, C)), range(32)))
    assert all(one is made[0] for one in made)


def test_preparing_opens_nothing(variants: LoadedVariants) -> None:
    variants.prepare((None, A, None, C), Schedule())
    assert not variants._made


# ---- weighted deltas ---------------------------------------------------------------------------


def weighing(taken: int, inputs: tuple[str, ...] = ()) -> LoadedVariants:
    """A bundle whose only cached variant gives back the last of what it is handed."""
    cached = replace(variant("cached", (B,)), inputs=("x", *inputs))
    plan = SimpleNamespace(
        spans=(SpanSpec(wanted=B, span=B, streams=2, bytes=4),), variants=(cached,), taken=taken
    )
    call = replace(cached.calls[0], inputs=cached.inputs)
    plan.variants = (replace(cached, calls=(call,)),)
    segments = {call.segment: lambda *given: [torch.stack([g.sum() for g in given])]}
    return LoadedVariants(cast(BundlePlan, plan), segments)


@pytest.mark.parametrize("taken", [0, 1, 2, 3])
def test_variants_of_more_deltas_serve_for_fewer(taken: int) -> None:
    assert weighing(3).fitting(B, taken) == 3
    weighing(3).prepare((None, B), Schedule(predictor="linear"))


@pytest.mark.parametrize(("ours", "can"), [(0, "the newest one as it is"), (2, "2 a stream")])
def test_more_deltas_than_were_exported_are_refused(ours: int, can: str) -> None:
    text = f"weighs 3 deltas a stream, the bundle's cached variants take {can}"
    with pytest.raises(ScheduleError, match=text):
        weighing(ours).prepare((None, B), Schedule(predictor="quadratic"))
    weighing(ours).prepare((None, None), Schedule(predictor="quadratic"))  # nothing is cached


def test_an_older_variant_takes_how_far_the_line_goes_on() -> None:
    older = weighing(2, ("d0", "d1", "e0", "e1", "trend"))
    deltas = [torch.tensor([at]) for at in (2.0, 3.0, 4.0, 5.0)]
    weights = [torch.tensor([1.75, -0.75])] * 2
    results, _ = older.cached(B, 2)([torch.ones(1), *deltas, *weights])
    assert results[0].tolist() == [1.0, 2.0, 3.0, 4.0, 5.0, 0.75]


def test_an_older_bundle_knows_no_weights_of_rows() -> None:
    older = weighing(2, ("d0", "d1", "e0", "e1", "trend"))
    own = Weights(shared=((0.9, 0.3),))
    schedule = ExplicitSchedule((None, None, B), weights=(None, None, own))
    with pytest.raises(ScheduleError, match="of an older version, predicts by the line"):
        older.prepare((None, B), schedule)
    older.prepare((None, B), Schedule(predictor="linear"))
    older.prepare((None, B), Schedule())
    weighing(2, ("d0", "d1", "e0", "e1", "weights_0", "weights_1")).prepare((None, B), schedule)
