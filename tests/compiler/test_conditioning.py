"""Which inputs belong to the step and not to the prompt, and what is cached in spite of them."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from driving import compiled
from models import AdaLNDenoiser, B, C, D, S, T, noise, randomise
from raising import raises_in_compile
from torch import Tensor, nn

import deltapass
from deltapass.backend import analyse
from deltapass.compiler.conditioning import added_inputs, conditioning_of
from deltapass.compiler.tracing import trace
from deltapass.errors import ChangingInputError, OptionError, RefusalWarning
from deltapass.options import StatedInputs
from deltapass.schedule.rules import Span
from deltapass.sessions.report import Cause

STEPS = 6
SCHEDULE = {"cached_blocks": 2, "boundary": 0.5}
DEEP, SHALLOW = Span(2, 4), Span(0, 2)
TABLE = (None, DEEP, None, SHALLOW, None, SHALLOW)  # of 6 steps and 4 blocks

Use = Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]


class Extra(AdaLNDenoiser):
    """A toy with a further input, used after block `after`: (x, conditioning, it) -> the two."""

    def __init__(self, use: Use, shape: tuple[int, ...] = (B, T, D), after: int = 1) -> None:
        super().__init__(depth=4)
        self.use, self.shape, self.after = use, shape, after
        self.pose = nn.Linear(D, D)

    def forward(self, hidden_states: Tensor, timestep: Tensor, control: Tensor) -> Tensor:
        x, c = self.embedding(hidden_states), self.conditioning(timestep)
        for at, block in enumerate([None, *self.blocks]):
            x = block(x, c) if block is not None else x
            x, c = self.use(x, c, control) if at == self.after else (x, c)
        return self.head(x, c)


def toy(use: Use, *shape: int, after: int = 1) -> Extra:
    model = Extra(use, shape or (B, T, D), after)
    randomise(model)
    return model


def inputs(model: Extra, step: int, seed: int) -> tuple[Tensor, ...]:
    timestep = torch.full((B,), 999.0 * (1 - step / STEPS))
    return noise(step, B, T, C), timestep, noise(5000 + seed, *model.shape)


def conditioning(model: Extra, *per_step: str) -> set[str]:
    """Names of the inputs that count as conditioning."""
    stated = StatedInputs(per_step=per_step)
    return set(conditioning_of(analyse(*trace(model, inputs(model, 0, 0), {}), stated)).values())


ADDED: dict[str, Use] = {
    "sum": lambda x, c, r: (x + r, c),
    "other order": lambda x, c, r: (r + x, c),
    "torch.add": lambda x, c, r: (torch.add(x, r), c),
    "scaled": lambda x, c, r: (x + 0.5 * r, c),
    "cast": lambda x, c, r: (x + r.to(torch.float64).to(x.dtype), c),
    "twice": lambda x, c, r: (x + r + r, c),
}
READ: dict[str, Use] = {
    "projected": lambda x, c, r: (x + torch.relu(r), c),
    "multiplied": lambda x, c, r: (x * r, c),
    "added and read": lambda x, c, r: (x + r + torch.tanh(r), c),
    "gated": lambda x, c, r: (x + torch.sigmoid(r) * r, c),
}


@pytest.mark.parametrize("use", ADDED.values(), ids=ADDED)
def test_input_that_is_only_added_between_blocks_is_no_conditioning(use: Use) -> None:
    model = toy(use)
    outlined = analyse(*trace(model, inputs(model, 0, 0), {}))
    assert added_inputs(outlined.captured, outlined.stack) == {"control"}
    assert conditioning(model) == set()


@pytest.mark.parametrize("use", READ.values(), ids=READ)
def test_input_that_is_computed_with_is_conditioning(use: Use) -> None:
    assert conditioning(toy(use)) == {"control"}


def test_input_that_is_broadcast_onto_the_stream_is_conditioning() -> None:
    model = toy(lambda x, c, r: (x + r[:, None], c), B, D)
    assert conditioning(model) == {"control"}


def test_context_read_by_attention_is_conditioning() -> None:
    model = toy(lambda x, c, r: (x + r.mean(dim=1, keepdim=True), c), B, S, D)
    assert conditioning(model) == {"control"}


@pytest.mark.parametrize(
    "use", [lambda x, c, r: (x, c + r), lambda x, c, r: (x, r + 2.0 * c)], ids=["sum", "scaled"]
)
def test_embedding_that_is_added_to_the_timesteps_is_conditioning(use: Use) -> None:
    assert conditioning(toy(use, B, D, after=0)) == {"control"}


# ---- runs --------------------------------------------------------------------------------------


@torch.no_grad()
def run(model: Extra, changing: bool, **options: Any) -> tuple[list[Tensor], deltapass.Session]:
    """A trajectory; `control` is another one at every step, or at none."""
    ours, outputs = compiled(model, **SCHEDULE, **options), []
    with deltapass.session(steps=STEPS) as session:
        for step in range(STEPS):
            session.step(step)
            outputs.append(ours(*inputs(model, step, step if changing else 0)))
    return outputs, session


@torch.no_grad()
def by_hand(model: Extra, span: Span, at: int, delta_of: int) -> Tensor:
    """A cached step: what is added between the blocks of a span is part of its delta."""

    def through(step: int, skipped: Span | None, delta: Any) -> tuple[list[Tensor], Tensor]:
        sample, timestep, control = inputs(model, step, step)
        x, c = model.embedding(sample), model.conditioning(timestep)
        entered = [x]
        for index, block in enumerate(model.blocks):
            if skipped is None or not skipped.start <= index < skipped.stop:
                x = block(x, c)
                x = model.use(x, c, control)[0] if index + 1 == model.after else x
            elif index == skipped.start:
                x = delta + x
            entered.append(x)
        return entered, model.head(x, c)

    entered, _ = through(delta_of, None, None)
    return through(at, span, entered[span.stop] - entered[span.start])[1]


def test_residuals_that_change_at_every_step_are_no_reason_to_refresh() -> None:
    model = toy(ADDED["sum"], after=1)
    outputs, session = run(model, changing=True)
    assert session.report().as_planned
    assert torch.equal(outputs[1], by_hand(model, DEEP, 1, 0))
    assert torch.equal(outputs[3], by_hand(model, SHALLOW, 3, 2))


def test_conditioning_that_changes_at_every_step_is_full_and_said_once() -> None:
    model = toy(READ["projected"])
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        outputs, session = run(model, changing=True)
    texts = [str(one.message) for one in said if one.category is RefusalWarning]
    assert [bool(re.search(r"every step: control\..*'sample'", text)) for text in texts] == [
        True,  # at the third change in a row
        False,  # on leaving: nothing was cached
    ]
    causes = [entry.cause for entry in session.entries]
    assert causes == [Cause.NEW_TRAJECTORY, *[Cause.CONDITIONING] * 5]
    assert session.entries[1].reason == "the conditioning changed: control"
    plain = [model(*inputs(model, step, step)) for step in range(STEPS)]
    assert all(map(torch.equal, outputs, plain))


def test_conditioning_that_changes_at_every_step_is_an_error_where_strict() -> None:
    with pytest.raises(ChangingInputError, match=r"changes at every step: control\b"):
        run(toy(READ["projected"]), changing=True, strict=True)


@torch.no_grad()
def test_call_that_was_refused_by_an_error_can_be_tried_again() -> None:
    model = toy(READ["projected"])
    ours = compiled(model, strict=True, **SCHEDULE)
    with deltapass.session(steps=STEPS) as session:
        for step in range(4):
            session.step(step)
            if step == 3:
                with pytest.raises(ChangingInputError):
                    ours(*inputs(model, step, step))
            ours(*inputs(model, step, step))
    assert [entry.branch for entry in session.entries] == [(None, 0)] * 4


def test_change_at_two_steps_is_not_said() -> None:
    model, step = toy(READ["projected"]), iter(range(STEPS))
    ours = compiled(model, **SCHEDULE)
    with torch.no_grad(), deltapass.session(steps=STEPS) as session:
        for seed in (0, 1, 2, 2, 3, 4):  # never three changes in a row
            session.step(at := next(step))
            ours(*inputs(model, at, seed))
    assert session.report().causes[Cause.CONDITIONING] == 4


@pytest.mark.parametrize("per_step", ["control", ["con"], ("control",)])
def test_input_named_in_per_step_is_no_reason_to_refresh(per_step: Any) -> None:
    model = toy(READ["projected"])
    assert conditioning(model, "con") == set()
    outputs, session = run(model, changing=True, per_step=per_step)
    assert session.report().as_planned
    assert torch.equal(outputs[1], by_hand(model, DEEP, 1, 0))


def test_name_in_per_step_that_is_no_inputs_is_an_error() -> None:
    with raises_in_compile(OptionError, match=r"'pose'.*part of the name of a data input: control"):
        run(toy(READ["projected"]), changing=True, per_step=["pose"])
