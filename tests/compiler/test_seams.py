"""compiler/seams.py: lists of blocks between which streams are joined or cut are one stack."""

from __future__ import annotations

import models
import pytest
import torch
from blocks_case import names, stack_of
from driving import compiled, follow, oracle, tensors
from models import AdaLNBlock, C, D
from models.parts import Conditioning, TextDenoiser
from models.streams import IMAGE_TEXT, SINGLE_STREAM
from models.toys import TwoStreamBlock
from torch import Tensor, nn

import deltapass
from deltapass.backend import analyse
from deltapass.compiler.tracing import trace
from deltapass.exporting.segments import segmented
from deltapass.schedule.rules import Span

STEPS = 8


class Joined(TextDenoiser):
    """Double blocks on text and image, single blocks on both in one, and blocks on the image alone.

    With `anew` the joined stream is scaled, so that it is no longer that of the double blocks.
    """

    def __init__(self, double: int = 2, single: int = 3, alone: int = 0, *, anew: bool = False):
        super().__init__()
        self.anew = anew
        self.embedding, self.text_embedding = nn.Linear(C, D), nn.Linear(D, D)
        self.conditioning, self.out = Conditioning(), nn.Linear(D, C)
        self.paired = nn.ModuleList(TwoStreamBlock(last=False) for _ in range(double))
        self.single = nn.ModuleList(AdaLNBlock() for _ in range(single))
        self.alone = nn.ModuleList(AdaLNBlock() for _ in range(alone))
        self.streams = (  # type: ignore[assignment]
            *(IMAGE_TEXT for _ in range(double)),
            *(SINGLE_STREAM for _ in range(single + alone)),
        )
        self.seams = (double, double + single)[: 1 + bool(alone)]

    def blocks_in_order(self) -> list[nn.Module]:
        return [*self.paired, *self.single, *self.alone]

    def forward(
        self, hidden_states: Tensor, timestep: Tensor, encoder_hidden_states: Tensor
    ) -> Tensor:
        image, text = self.embedding(hidden_states), self.text_embedding(encoder_hidden_states)
        conditioning = self.conditioning(timestep)
        for block in self.paired:
            image, text = block(
                hidden_states=image, encoder_hidden_states=text, conditioning=conditioning
            )
        x = torch.cat([text, image], dim=1)
        x = x * 2 if self.anew else x
        for block in self.single:
            x = block(x, conditioning)
        x = x[:, text.shape[1] :]
        for block in self.alone:
            x = block(x, conditioning)
        return self.out(x)


def test_lists_on_both_sides_of_a_concatenation_and_a_slice_are_one_stack() -> None:
    stack = stack_of(Joined(2, 3, 2))
    assert names(stack) == [
        *("paired.0", "paired.1"),
        *("single.0", "single.1", "single.2"),
        *("alone.0", "alone.1"),
    ]
    assert stack.seams == (2, 5)


def test_what_is_computed_between_two_lists_parts_them() -> None:
    assert names(stack_of(Joined(3, 2, anew=True))) == ["paired.0", "paired.1", "paired.2"]


@pytest.mark.parametrize(("alone", "cached"), [(0, 4), (2, 3)])
@pytest.mark.parametrize("order", [0, 1])
def test_cached_steps_over_seams_equal_the_oracle(alone: int, cached: int, order: int) -> None:
    toy = models.randomise(Joined(2, 3, alone))
    last = len(toy.blocks_in_order())
    deep, shallow = Span(last - cached, last), Span(0, cached)  # one seam in each
    table = (None, deep, None, deep, None, shallow, None, shallow)
    calls = [toy.inputs(999.0 - 100 * step, seed=step) for step in range(STEPS)]
    model = compiled(toy, order=order, boundary=0.5, cached_blocks=cached, strict=True)
    with deltapass.session(steps=STEPS) as session:
        outputs = tensors(follow(model, calls, session))
    plain, expected = follow(toy, calls), oracle(toy, table, calls, order)
    for step, span in enumerate(table):
        assert torch.equal(outputs[step], expected[step])
        assert torch.equal(outputs[step], plain[step]) == (span is None)


def test_a_span_that_can_be_paired_as_a_whole_has_no_parts() -> None:
    # It begins and ends with the image stream alone in its shape, and has one delta.
    toy = models.randomise(Joined(2, 3, 2))
    args, kwargs = toy.inputs(500.0)
    report = deltapass.explain(toy, *args, options={"cached_blocks": 6}, **kwargs)
    deep, _ = report.spans
    assert deep.count("float32[") == 1


def test_report_counts_the_deltas_of_every_part() -> None:
    toy = models.randomise(Joined(2, 3))
    args, kwargs = toy.inputs(500.0)
    report = deltapass.explain(toy, *args, options={"cached_blocks": 4}, **kwargs)
    deep, _ = report.spans
    # Image and text of the double block, and the joined stream of the single ones.
    assert deep.count("float32[") == 3


def test_engines_are_cut_at_the_seams_of_their_spans() -> None:
    toy = models.randomise(Joined(2, 3))
    args, kwargs = toy.inputs(500.0)
    found = analyse(*trace(toy, args, kwargs))
    labels = [call.label for call in segmented(found, [Span(1, 5)]).calls]
    assert labels == [
        *("prologue_blocks_0_1", "blocks_1_2", "between_2"),
        *("blocks_2_5", "epilogue"),
    ]
