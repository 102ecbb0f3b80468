"""selector/later.py: which graphs a schedule must fit, and which run in full where it does not."""

from __future__ import annotations

import gc
from typing import Any

import pytest
import torch
from driving import compiled, follow
from models import make
from models.adaln import AdaLNDenoiser
from raising import raises_in_compile
from torch import Tensor

import deltapass
from deltapass.errors import RefusalWarning, TooManyCachedBlocksError
from deltapass.selector.later import is_later_graph, marks
from deltapass.sessions.report import Cause

STEPS = 4
SCHEDULE = {"schedule": "delta-cache-deep", "cached_blocks": 5}


class SkipsLayers(AdaLNDenoiser):
    """Runs without its last blocks where it is told to, as skip-layer guidance does."""

    def forward(self, hidden_states: Tensor, timestep: Tensor, skipped: int = 0) -> Tensor:
        x, conditioning = self.embedding(hidden_states), self.conditioning(timestep)
        for block in self.blocks[: len(self.blocks) - skipped]:
            x = block(x, conditioning)
        return self.head(x, conditioning)


def calls_of(toy: Any) -> list[Any]:
    return [toy.inputs(999.0 - 100 * step, step) for step in range(STEPS)]


@torch.no_grad()
def run(model: Any, calls: list[Any], session: deltapass.Session) -> list[Tensor]:
    """Each step with all blocks, and again with fewer."""
    outputs = []
    for step, (args, kwargs) in enumerate(calls):
        for skipped in (0, 3):
            session.step(step, branch=skipped)
            outputs.append(model(*args, **kwargs, skipped=skipped))
    return outputs


def test_a_later_graph_that_is_too_short_runs_in_full_and_the_first_goes_on() -> None:
    toy = SkipsLayers().eval()
    calls = calls_of(toy)
    model = compiled(toy, **SCHEDULE)
    with (
        pytest.warns(RefusalWarning, match="5 but the model has 3 blocks") as said,
        deltapass.session(steps=STEPS) as session,
    ):
        outputs = run(model, calls, session)
        ran = [entry for entry in session.entries if entry.cause is not Cause.REFUSED]
    assert [entry.realised is not None for entry in ran] == [False, True, False, True]
    assert len(said) == 1
    with torch.no_grad():
        short = [toy(*args, **kwargs, skipped=3) for args, kwargs in calls]
    assert all(map(torch.equal, outputs[1::2], short))
    with deltapass.session(steps=STEPS) as session:
        assert all(map(torch.equal, follow(model, calls, session), outputs[::2]))


def test_strict_raises_at_a_later_graph() -> None:
    toy = SkipsLayers().eval()
    model = compiled(toy, strict=True, **SCHEDULE)
    (args, kwargs), *_ = calls_of(toy)
    with torch.no_grad(), deltapass.session(steps=STEPS) as session:
        session.step(0)
        model(*args, **kwargs)
        with raises_in_compile(TooManyCachedBlocksError, match="3 blocks"):
            model(*args, **kwargs, skipped=3)


def test_the_first_graph_of_another_model_raises() -> None:
    toy, other = SkipsLayers().eval(), SkipsLayers(depth=3).eval()
    (args, kwargs), *_ = calls_of(toy)
    kept = compiled(toy, **SCHEDULE)
    with torch.no_grad(), deltapass.session(steps=STEPS) as session:
        session.step(0)
        kept(*args, **kwargs)
        with raises_in_compile(TooManyCachedBlocksError, match="3 blocks"):
            compiled(other, **SCHEDULE)(*args, **kwargs)


def test_marks_go_with_who_holds_them() -> None:
    weights = list(make("adaln").parameters())
    held = marks([torch.ones(2), *weights])
    assert is_later_graph(weights[3:5])
    assert not is_later_graph([torch.ones(2)])
    del held
    gc.collect()
    assert not is_later_graph(weights)
