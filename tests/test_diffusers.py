"""Model classes of diffusers, tiny, with random weights: one graph, bit-equal, no recompiles."""

from __future__ import annotations

import itertools

import pytest
import torch

pytest.importorskip("diffusers")

from driving import compiled, follow, oracle, sampled, tensors
from models.tiny import TINY_NAMES, make_tiny
from sweeps import sweep

import deltapass
from deltapass.schedule.rules import Span

STEPS = 8
# One stream, joint streams, blocks of two kinds; the others have rules of no other kind.
QUICK = (("pixart", 0), ("sd3", 1), ("flux", 0))


@pytest.mark.parametrize(("name", "order"), sweep(itertools.product(TINY_NAMES, (0, 1)), QUICK))
def test_two_trajectories_equal_the_oracle_without_recompiling(name: str, order: int) -> None:
    tiny = make_tiny(name)
    blocks = len(tiny.blocks)
    deep, shallow = Span(1, blocks), Span(0, blocks - 1)
    table = (None, None, None, deep, None, shallow, None, shallow)
    model = compiled(tiny.model, order=order, boundary=0.5, cached_blocks=blocks - 1)
    for trajectory in range(2):
        seeds = range(10 * trajectory, 10 * trajectory + STEPS)
        calls = sampled([tiny.call(1.0 - s / STEPS, seed) for s, seed in enumerate(seeds)])
        with torch._dynamo.config.patch(error_on_recompile=trajectory > 0):
            outputs = follow(model, calls)  # steps found by the timestep input
        plain = follow(tiny.model, calls)
        expected = oracle(tiny, table, calls, order)
        for step, span in enumerate(table):
            ours, theirs = tensors(outputs)[step], tensors(expected)[step]
            assert torch.equal(ours, theirs)
            # A refresh is the plain model; a cached step is not, or nothing would be tested.
            assert torch.equal(ours, tensors(plain)[step]) == (span is None)


@pytest.mark.parametrize(
    ("name", "streams"),
    sweep([("dit", 1), ("pixart", 1), ("sd3", 2), ("flux", 2)], [("dit", 1), ("sd3", 2)]),
)
def test_shallow_spans_have_a_delta_for_every_stream(name: str, streams: int) -> None:
    tiny = make_tiny(name)
    args, kwargs = tiny.call(0.9)
    options = {"cached_blocks": 2, "boundary": 0.5}
    report = deltapass.explain(tiny.model, *args, options=options, **kwargs)
    assert report.refusal is None
    deep, shallow = report.spans
    assert deep.count("float32[") == 1, "the last block hands on the image stream only"
    assert shallow.count("float32[") == streams


@pytest.mark.parametrize("name", sweep(TINY_NAMES, ["flux"]))
def test_session_of_two_branches_equals_two_runs(name: str) -> None:
    tiny = make_tiny(name)
    model = compiled(tiny.model, cached_blocks=2, boundary=0.5)
    runs = [[tiny.call(1.0 - s / 4, seed=s + 10 * branch) for s in range(4)] for branch in (0, 1)]
    alone = []
    for calls in runs:
        with deltapass.session(steps=4) as session:
            alone.append(tensors(follow(model, calls, session)))
    with torch.no_grad(), deltapass.session(steps=4) as session:
        for step in range(4):
            for branch in (0, 1):
                session.step(step, branch=branch)
                args, kwargs = runs[branch][step]
                together = tensors([model(*args, **kwargs)])[0]
                assert torch.equal(together, alone[branch][step])
