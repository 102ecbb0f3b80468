"""tuning/search/pairs.py: what is recorded of plain trajectories is what their deltas are."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from own_loop import toy_loop

from deltapass.schedule.explicit import ExplicitSchedule
from deltapass.schedule.rules import Span
from deltapass.tuning.loops import open_loop
from deltapass.tuning.search.candidates import Candidate, Space
from deltapass.tuning.search.pairs import Pairs, Recorder
from deltapass.tuning.search.preparing import recorded
from deltapass.tuning.search.scoring import batches_of

STEPS = 5
SPAN = Span(1, 5)


def test_recording_leaves_trajectories_plain() -> None:
    with open_loop(toy_loop(), steps=STEPS) as loop:
        plain = loop.run([3, 4])
        schedule = ExplicitSchedule(Recorder.table(SPAN, STEPS), "linear")
        watched = loop.run([3, 4], schedule, observer=Recorder(STEPS))
    assert torch.equal(watched.samples, plain.samples)
    assert watched.report.saved_share == 0.0


def test_products_are_those_of_the_deltas_that_hooks_see(monkeypatch: pytest.MonkeyPatch) -> None:
    """Summed over seeds, whatever the batches."""
    seen: list[tuple[torch.Tensor, ...]] = []
    note = Recorder._note

    def noting(self: Recorder, kept: object, step: int, deltas: Sequence[torch.Tensor]) -> None:
        seen.append(tuple(deltas))
        note(self, kept, step, deltas)  # type: ignore[arg-type]

    monkeypatch.setattr(Recorder, "_note", noting)
    space = Space(steps=STEPS, blocks=6, spans=(SPAN,), forecasts=("linear",))
    with open_loop(toy_loop(), steps=STEPS) as loop:
        whole = recorded(loop, space, batches_of(range(4), 4))
        deltas = torch.stack([each[0].double().flatten() for each in seen])
        apart = recorded(loop, space, batches_of(range(4), 2))
    assert len(deltas) == STEPS
    assert whole.products[SPAN] == pytest.approx((deltas @ deltas.T).numpy(), rel=1e-9)
    assert apart.products[SPAN] == pytest.approx(whole.products[SPAN], rel=1e-4)


def test_a_schedule_carries_the_weights_that_its_refreshes_allow() -> None:
    products = np.eye(4) + 1.0
    pairs = Pairs({SPAN: products})
    fitted = pairs.schedule(Candidate((None, SPAN, None, SPAN), "fitted-3"))
    depths = [0 if weights is None else weights.depth for weights in fitted.weights]
    assert depths == [0, 1, 0, 2] and fitted.predictor == "linear"
    plain = pairs.schedule(Candidate((None, SPAN, None, SPAN), "quadratic"))
    assert not plain.weights and plain.predictor == "quadratic"
