"""Segments: cut where a span begins or ends and nowhere else, and still the same model."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from models import TOYS, AdaLNDenoiser, C, D, Denoiser, make, make_controlled, noise, randomise
from reference import Call
from torch import nn
from torch.export import Dim

from deltapass.compiler.blocks import find_blocks
from deltapass.compiler.outline import Outline, outline
from deltapass.compiler.plan import plan_span
from deltapass.compiler.rewrite import cached_program, refresh_program
from deltapass.exporting.segments import dense, formulas, segmented
from deltapass.exporting.trace import Exported, export_graph
from deltapass.graph.executable import Executable
from deltapass.graph.program import Program, TensorSpec
from deltapass.graph.sizes import symbols_of
from deltapass.schedule.rules import Span

CUT = tuple(name for name in TOYS if name not in ("no_blocks", "attributes"))
SPANS: tuple[tuple[Span, ...], ...] = (
    (),
    (Span(0, 6),),
    (Span(0, 1),),
    (Span(5, 6),),
    (Span(2, 3),),
    (Span(2, 6), Span(0, 4)),
    (Span(0, 1), Span(2, 3), Span(4, 6)),
    (Span(1, 5), Span(2, 4)),
)
LABELS = {
    (): ["prologue_blocks_0_6_epilogue"],
    (Span(0, 6),): ["prologue", "blocks_0_6", "epilogue"],
    (Span(0, 1),): ["prologue", "blocks_0_1", "blocks_1_6_epilogue"],
    (Span(5, 6),): ["prologue_blocks_0_5", "blocks_5_6", "epilogue"],
    (Span(2, 3),): ["prologue_blocks_0_2", "blocks_2_3", "blocks_3_6_epilogue"],
    (Span(2, 6), Span(0, 4)): ["prologue", "blocks_0_2", "blocks_2_4", "blocks_4_6", "epilogue"],
    (Span(0, 1), Span(2, 3), Span(4, 6)): [
        *("prologue", "blocks_0_1", "blocks_1_2", "blocks_2_3", "blocks_3_4", "blocks_4_6"),
        "epilogue",
    ],
    (Span(1, 5), Span(2, 4)): [
        *("prologue_blocks_0_1", "blocks_1_2", "blocks_2_4", "blocks_4_5"),
        "blocks_5_6_epilogue",
    ],
}


def outlined(model: Denoiser, dynamic: Any = None, batch: Any = None) -> tuple[Exported, Outline]:
    args, kwargs = model.inputs(0.5)
    exported = export_graph(model, args, kwargs, dynamic, batch)
    return exported, outline(exported.captured, find_blocks(exported.captured))


@pytest.fixture(scope="module", params=CUT)
def toy(request: pytest.FixtureRequest) -> tuple[Denoiser, Exported, Outline]:
    model = make(request.param)
    return model, *outlined(model)


@pytest.fixture(scope="module")
def plain() -> tuple[Denoiser, Exported, Outline]:
    model = make("adaln")
    return model, *outlined(model)


def run(program: Program, exported: Exported, **further: torch.Tensor) -> tuple[Any, Any]:
    """The program in plain PyTorch, on the example and the model's weights."""
    weights = {name: exported.tensors[path] for name, path in exported.weights.items()}
    known = {**weights, **exported.captured.constants, **exported.example, **further}
    with torch.no_grad():
        call = Executable(program, lambda body: body.module.forward)
        return call([known.get(name) for name in program.inputs])


def plain_result(model: Denoiser) -> torch.Tensor:
    args, kwargs = model.inputs(0.5)
    with torch.no_grad():
        result: torch.Tensor = model(*args, **kwargs)
    return result


def weights_of(program: Program) -> list[list[str]]:
    return [[name for name in call.inputs if name in program.weights] for call in program.calls]


# ---- where it is cut ---------------------------------------------------------------------------


@pytest.mark.parametrize("spans", SPANS, ids=str)
def test_segments_end_where_spans_do_and_nowhere_else(
    spans: tuple[Span, ...], plain: tuple[Denoiser, Exported, Outline]
) -> None:
    program = segmented(plain[2], spans)
    assert [call.label for call in program.calls] == LABELS[spans]


def test_what_lies_between_blocks_goes_with_the_blocks_before_it() -> None:
    model = make_controlled()
    exported, found = outlined(model)  # every block is followed by an addition
    assert len(found.program.calls) > len(found.stack) + 2
    for spans in ((Span(1, 3),), (Span(0, 1), Span(2, 4)), (Span(0, 4),), ()):
        program = segmented(found, spans)
        labels = [call.label for call in program.calls]
        assert len(set(labels)) == len(labels)
        blocks = [word for word in "_".join(labels).split("_") if word.isdigit()]
        assert blocks == sorted(blocks, key=int)
        (result,), _ = run(program, exported)
        assert torch.equal(result, plain_result(model))


def test_equal_segments_keep_names_of_their_own(plain: tuple[Denoiser, Exported, Outline]) -> None:
    spans = [Span(at, at + 1) for at in range(6)]
    labels = [call.label for call in segmented(plain[2], spans).calls]
    assert labels == ["prologue", *(f"blocks_{at}_{at + 1}" for at in range(6)), "epilogue"]


# ---- what is in them ---------------------------------------------------------------------------


@pytest.mark.parametrize("spans", [(), (Span(2, 3),), (Span(2, 6), Span(0, 4))], ids=str)
def test_every_weight_lies_in_exactly_one_segment(
    spans: tuple[Span, ...], toy: tuple[Denoiser, Exported, Outline]
) -> None:
    _, exported, found = toy
    program = segmented(found, spans)
    count = Counter(name for names in weights_of(program) for name in names)
    used = {n for call in found.program.calls for n in call.inputs if n in program.weights}
    assert set(count) == used >= set(exported.weights)
    assert set(count.values()) == {1}


def test_a_weight_that_two_segments_read_is_handed_to_both() -> None:
    model = AdaLNDenoiser(depth=4, reuse_first=True)
    randomise(model)
    exported, found = outlined(model)
    program = segmented(found, [Span(0, 2)])
    names = {name: path for name, path in exported.weights.items() if "blocks.0.modul" in path}
    readers = [set(some) & set(names) for some in weights_of(program)]
    assert [bool(some) for some in readers] == [False, True, True]
    (result,), _ = run(program, exported)
    assert torch.equal(result, plain_result(model))


@pytest.mark.parametrize("spans", SPANS, ids=str)
def test_the_segmented_program_is_the_model_bit_for_bit(
    spans: tuple[Span, ...], toy: tuple[Denoiser, Exported, Outline]
) -> None:
    model, exported, found = toy
    program = segmented(found, spans)
    results, deltas = run(program, exported)
    assert torch.equal(results[0], plain_result(model)) and deltas == ()


def test_work_is_neither_lost_nor_doubled(toy: tuple[Denoiser, Exported, Outline]) -> None:
    _, _, found = toy
    for spans in SPANS:
        program = segmented(found, spans)
        assert program.macs.full == pytest.approx(found.program.macs.full)
        assert program.macs.paper == pytest.approx(found.program.macs.paper)


def test_a_segment_gives_only_what_is_read_later(toy: tuple[Denoiser, Exported, Outline]) -> None:
    program = segmented(toy[2], [Span(2, 6), Span(0, 4)])
    for at, call in enumerate(program.calls):
        later = {name for other in program.calls[at + 1 :] for name in other.inputs}
        assert set(call.outputs) <= {*later, *program.value_results}
        assert len(set(call.inputs)) == len(call.inputs)


def test_values_between_segments_are_dense(toy: tuple[Denoiser, Exported, Outline]) -> None:
    _, exported, found = toy
    program = segmented(found, [Span(0, 1), Span(1, 6)])
    held = {name: exported.tensors[path] for name, path in exported.weights.items()}
    values = {**held, **exported.captured.constants, **exported.example}
    for call in program.calls:
        with torch.no_grad():
            made = call.body.module.forward(*(values[name] for name in call.inputs))
        for name, value in zip(call.outputs, made, strict=True):
            assert value.is_contiguous(), f"{name} of {call.label}"
            assert program.specs[name] == dense(program.specs[name])
        values.update(zip(call.outputs, made, strict=True))


@pytest.mark.parametrize(
    ("shape", "stride"), [((2, 3, 4), (12, 4, 1)), ((5,), (1,)), ((), ()), ((2, 0, 3), (0, 3, 1))]
)
def test_dense_is_row_by_row_without_gaps(shape: Sequence[int], stride: Sequence[int]) -> None:
    given = TensorSpec(
        shape=tuple(shape),
        stride=tuple(reversed(range(len(shape)))),
        dtype=torch.float16,
        device=torch.device("cpu"),
    )
    assert dense(given).stride == tuple(stride)
    assert dense(given).shape == given.shape and dense(given).dtype == given.dtype


# ---- variants ----------------------------------------------------------------------------------


def test_cached_variants_of_segments_leave_out_those_of_the_span(
    plain: tuple[Denoiser, Exported, Outline],
) -> None:
    model, exported, found = plain
    span = plan_span(found, Span(2, 5))
    program = segmented(found, [span.span])
    refresh = refresh_program(program, [span])
    results, deltas = run(refresh, exported)
    assert torch.equal(results[0], plain_result(model))
    cached = cached_program(program, span, 0)
    assert [call.label for call in cached.calls] == [
        "prologue_blocks_0_2",
        "predict_0",
        "blocks_5_6_epilogue",
    ]
    again, _ = run(cached, exported, **dict(zip(refresh.deltas, deltas, strict=True)))
    assert torch.allclose(again[0], results[0], atol=1e-5)


def test_blocks_before_a_feature_are_a_segment_that_its_variant_leaves_out(
    plain: tuple[Denoiser, Exported, Outline],
) -> None:
    model, exported, found = plain
    span = plan_span(found, Span(2, 5, "feature"))
    program = segmented(found, [span.span])
    refresh, cached = refresh_program(program, [span]), cached_program(program, span)
    results, kept = run(refresh, exported)
    assert torch.equal(results[0], plain_result(model))
    assert [call.label for call in refresh.calls] == [
        *("prologue", "blocks_0_2", "blocks_2_5", "feature", "blocks_5_6_epilogue")
    ]
    assert [call.label for call in cached.calls] == [
        *("prologue", "predict_0", "blocks_5_6_epilogue")
    ]
    again, _ = run(cached, exported, **dict(zip(refresh.deltas, kept, strict=True)))
    assert torch.equal(again[0], results[0])


# ---- sizes -------------------------------------------------------------------------------------


class PatchDenoiser(AdaLNDenoiser):
    """Images in patches of two: its head names height and width, which its live-in cannot tell."""

    def __init__(self) -> None:
        super().__init__(depth=6)
        self.patches, self.last = nn.Conv2d(C, D, 2, stride=2), nn.Linear(D, 4 * C)

    def forward(self, hidden_states: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
        _, _, height, width = hidden_states.shape
        x, conditioning = self.patches(hidden_states), self.conditioning(timestep)
        x = x.flatten(2).transpose(1, 2)
        for block in self.blocks:
            x = block(x, conditioning)
        x = self.last(x).unflatten(-1, (C, 2, 2)).unflatten(1, (height // 2, width // 2))
        return x.permute(0, 3, 1, 4, 2, 5).reshape(hidden_states.shape)

    def inputs(self, timestep: float, seed: int = 0) -> Call:
        return (noise(seed, 2, C, 8, 8), torch.full((2,), timestep)), {}


def test_a_segment_is_handed_the_input_that_tells_it_a_size() -> None:
    model = PatchDenoiser()
    randomise(model)
    sides = {2: 2 * Dim("height", min=1, max=8), 3: 2 * Dim("width", min=1, max=8)}
    exported, found = outlined(model, {"hidden_states": sides})
    program = segmented(found, [Span(2, 4)], exported.shapes)
    assert "hidden_states" in program.calls[-1].inputs
    assert formulas(program.calls[-1].body)
    (result,), _ = run(program, exported)
    assert torch.equal(result, plain_result(model))


@pytest.mark.parametrize("name", ["cross_attention", "two_stream"])
def test_a_segment_is_told_every_size_that_it_names(name: str) -> None:
    model = make(name)
    exported, found = outlined(model, batch=(1, 8))
    program = segmented(found, [Span(2, 6), Span(0, 4)], exported.shapes)
    for call in program.calls:
        known = {size for given in call.inputs for size in exported.shapes.get(given, ())}
        given = (size for out in call.outputs for size in exported.shapes.get(out, ()))
        named = {*formulas(call.body), *(size for size in given if isinstance(size, str))}
        assert all(formula in known or symbols_of(formula) <= known for formula in named)
    (result,), _ = run(program, exported)
    assert torch.equal(result, plain_result(model))
