"""Side inputs of a span against the oracle: what is read inside is part of the delta (Eq. 3).

Residuals of control networks are in tests/pipelines/test_controlnet.py.
"""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from driving import compiled, in_session, oracle
from models import AdaLNBlock, AdaLNDenoiser, B, C, D, Denoiser, T, make, noise, randomise
from models.streams import Call
from torch import Tensor, nn

import deltapass
from deltapass.schedule.explicit import ExplicitSchedule
from deltapass.schedule.rules import Span, Table


def calls_of(model: Denoiser, steps: int) -> list[Call]:
    return [model.inputs(1000.0 * (1 - step / steps), step) for step in range(steps)]


def check(model: Denoiser, span: Span, calls: Sequence[Call], **options: object) -> None:
    """Steps that skip the span are those of the oracle, and other ones than the plain model's."""
    table: Table = (None, span, span, None, span, None)
    given = calls[: len(table)]
    run = compiled(model, schedule=ExplicitSchedule(table), steps=len(table), **options)
    outputs, report = in_session(run, given)
    assert tuple(entry.realised for entry in report.entries) == table
    plain = oracle(model, (None,) * len(table), given)
    wanted = oracle(model, table, given)
    for step, (ours, theirs) in enumerate(zip(outputs, wanted, strict=True)):
        assert torch.equal(ours, theirs)
        assert torch.equal(ours, plain[step]) == (table[step] is None)


# ---- something added in every block ------------------------------------------------------------


class AddingBlock(AdaLNBlock):
    """First adds what all blocks share."""

    def forward(  # type: ignore[override]
        self, hidden_states: Tensor, conditioning: Tensor, shared: Tensor
    ) -> Tensor:
        return super().forward(hidden_states + shared, conditioning)


class AddingDenoiser(AdaLNDenoiser):
    """Every block adds one value to its stream: `kind` says where that comes from."""

    def __init__(self, kind: str, depth: int = 5) -> None:
        super().__init__(depth=0)
        self.kind = kind
        self.positions, self.table = nn.Parameter(torch.zeros(T, D)), nn.Embedding(T, D)
        self.blocks = nn.ModuleList(AddingBlock() for _ in range(depth))

    def forward(self, hidden_states: Tensor, timestep: Tensor) -> Tensor:
        x, conditioning = self.embedding(hidden_states), self.conditioning(timestep)
        shared = self.shared(x, timestep)
        for block in self.blocks:
            x = block(x, conditioning, shared)
        return self.head(x, conditioning)

    def shared(self, x: Tensor, timestep: Tensor) -> Tensor:
        if self.kind == "learned":  # one sample: of the stream's own shape
            return self.positions[None]
        if self.kind == "normalised":
            spread = self.positions.expand(x.shape)
            return (spread / (torch.linalg.vector_norm(spread, dim=-1, keepdim=True) + 1)).type_as(
                x
            )
        if self.kind == "looked up":
            return self.table(torch.arange(T, device=x.device)).expand_as(x)
        if self.kind == "sinusoidal":
            angles = torch.arange(T, device=x.device)[:, None] / torch.arange(1, D + 1)
            return torch.zeros_like(x) + angles.sin()
        return torch.zeros_like(x) + (timestep / 1000)[:, None, None].cos()  # of the step

    def inputs(self, timestep: float, seed: int = 0) -> Call:
        batch = 1 if self.kind == "learned" else B
        return (noise(seed, batch, T, C), torch.full((batch,), timestep)), {}


KINDS = ("learned", "normalised", "looked up", "sinusoidal", "of the step")


@pytest.mark.parametrize("span", [Span(0, 4), Span(0, 5), Span(1, 5)])
@pytest.mark.parametrize("kind", KINDS)
def test_what_every_block_adds_is_no_stream(kind: str, span: Span) -> None:
    model = randomise(AddingDenoiser(kind))
    check(model, span, calls_of(model, 8))


class OfTheSample(AddingDenoiser):
    def forward(self, hidden_states: Tensor, timestep: Tensor) -> Tensor:
        self.second = torch.tanh(hidden_states).repeat(1, 1, D // C)
        return super().forward(hidden_states, timestep)

    def shared(self, x: Tensor, timestep: Tensor) -> Tensor:
        return self.second.type_as(x)


def test_what_is_made_of_the_sample_too_is_not_guessed() -> None:
    # Either could be the stream at the first sum; behind it there is no doubt.
    model = randomise(OfTheSample("sample"))
    args, kwargs = model.inputs(500.0)
    report = deltapass.explain(model, *args, options={"cached_blocks": 4}, **kwargs)
    assert report.refusal is None
    deep, shallow = report.spans
    assert deep.startswith("blocks 1..4; streams")
    assert shallow.startswith("blocks 1..3 (wanted blocks 0..3")


# ---- the model's own between blocks, and hints inside them -------------------------------------


class AdaptedDenoiser(AdaLNDenoiser):
    """A layer of the model's own adds something between every two blocks."""

    def __init__(self, depth: int = 5) -> None:
        super().__init__(depth)
        self.adapters = nn.ModuleList(nn.Linear(D, D) for _ in range(depth))

    def forward(self, hidden_states: Tensor, timestep: Tensor) -> Tensor:
        x, conditioning = self.embedding(hidden_states), self.conditioning(timestep)
        for block, adapter in zip(self.blocks, self.adapters, strict=True):
            x = block(x, conditioning)
            x = x + torch.tanh(adapter(x))
        return self.head(x, conditioning)


@pytest.mark.parametrize("span", [Span(0, 3), Span(1, 5), Span(1, 4)])
def test_adapters_between_the_blocks_of_a_span_are_part_of_the_delta(span: Span) -> None:
    model = randomise(AdaptedDenoiser())
    check(model, span, calls_of(model, 8))


class HintedBlock(AdaLNBlock):
    def forward(  # type: ignore[override]
        self, hidden_states: Tensor, conditioning: Tensor, hint: Tensor
    ) -> Tensor:
        return super().forward(hidden_states, conditioning + hint.mean(dim=1))


class HintedDenoiser(AdaLNDenoiser):
    """Every block reads a hint that changes with the step."""

    def __init__(self, depth: int = 5) -> None:
        super().__init__(depth=0)
        self.blocks = nn.ModuleList(HintedBlock() for _ in range(depth))

    def forward(  # type: ignore[override]
        self, hidden_states: Tensor, timestep: Tensor, pose: Tensor
    ) -> Tensor:
        x, conditioning = self.embedding(hidden_states), self.conditioning(timestep)
        for block in self.blocks:
            x = block(x, conditioning, pose)
        return self.head(x, conditioning)

    def inputs(self, timestep: float, seed: int = 0) -> Call:
        args, _ = super().inputs(timestep, seed)
        return args, {"pose": noise(500 + seed, B, 3, D)}


@pytest.mark.parametrize("span", [Span(0, 3), Span(1, 5)])
def test_hints_read_inside_a_span_are_those_of_the_refresh(span: Span) -> None:
    model = randomise(HintedDenoiser())
    check(model, span, calls_of(model, 8), per_step=["pose"])


# ---- long skips across the edges of a span -----------------------------------------------------


@pytest.mark.parametrize(
    "span",
    [
        Span(0, 3),  # two values leave it for blocks behind it, each with a delta of its own
        Span(1, 3),  # one leaves it, one passes over it
        Span(3, 6),  # three enter it from before
        Span(4, 5),  # one enters, one passes over
        Span(0, 6),  # all begin and end inside
    ],
)
def test_long_skips_across_the_edges_of_a_span(span: Span) -> None:
    model = make("long_skip")
    check(model, span, calls_of(model, 8))
