"""Real pipelines with nothing but torch.compile: the step is found from the timestep input.

The boundary lies at a noise level, not at a step, for nobody says how many steps there are. Nor is
it known whether they are few, which have defaults of their own: those trajectories are refused.
The first steps refresh: they show that it is a sampler.
"""

from __future__ import annotations

import gc
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

pytest.importorskip("diffusers")
pytest.importorskip("transformers")

from diffusers import HeunDiscreteScheduler
from driving import by_timestep
from models.zoo import NUMPY_WARNINGS, Zoo, make_pipe
from pipeline_case import (
    CACHED,
    INTERRUPTED,
    SCHEDULE,
    check_entries,
    compiled_pipe,
    deltas_kept,
    expected,
    original,
    realised,
    report_of,
)
from sweeps import sweep

import deltapass
from deltapass.schedule.rules import Span, Table

pytestmark = [pytest.mark.keeps_compiled, pytest.mark.filterwarnings(NUMPY_WARNINGS)]

# All samplers of one model; joint streams; blocks of two kinds, and guidance by a call of its own.
QUICK = (*(name for name in CACHED if name.startswith("pixart")), "sd3", "flux-cfg")
RESIZED = ("pixart-dpm", "sd3-img2img", "flux-cfg", "wan")
EMBEDDED = ("flux", "flux-img2img", "flux-controlnet", "hunyuanvideo")  # guidance
# Draws its noise anew at every step: at more steps than these, one may not follow from the last.
RENOISED = ("pixart-lcm",)
STEPS = 12
TRAINING_STEPS = 1000.0  # of all samplers here, by whose number a timestep is a noise level


@pytest.fixture(scope="module", params=sweep(CACHED, QUICK))
def zoo(request: pytest.FixtureRequest) -> Zoo:
    return compiled_pipe(request.param)


def table_by_level(zoo: Zoo, **overrides: Any) -> Table:
    """What the schedule says for the noise levels of the last call; full before its start.

    Steps are counted from the first that is run, so image-to-image begins with a refresh too.
    """
    start = zoo.start(**overrides)
    levels = [float(time) / TRAINING_STEPS for time in zoo.pipe.scheduler.timesteps[start:]]
    rows = (SCHEDULE.at(step, level, len(zoo.blocks)) for step, level in enumerate(levels))
    return (*(None,) * start, *by_timestep(tuple(rows)))


def check(zoo: Zoo, **overrides: Any) -> None:
    """One call: the result, and what was done call by call."""
    overrides = {"steps": STEPS, **overrides}
    result = zoo.run(**overrides)
    table, branches = table_by_level(zoo, **overrides), zoo.branches(**overrides)
    assert torch.equal(result, expected(original(zoo.name), table, **overrides))
    run = table[zoo.start(**overrides) :]
    check_entries(report_of(zoo.denoiser), run, branches, 0)
    assert {len(span) for span in run if span is not None} == {2}


def other_request(zoo: Zoo) -> dict[str, Any]:
    """Other steps, prompt, and guidance on or off; another batch and size for some models.

    Where guidance doubles the batch, two images without it have the shapes of one image with it:
    there the compiled model is the same, and nothing but the values tells the requests apart.
    """
    guidance = 1.0 if zoo.defaults.guidance > 1 else 4.0
    steps = STEPS if zoo.name in RENOISED else 15
    other = {"steps": steps, "guidance": guidance, "prompt": 1, "seed": 1}
    if zoo.name in RESIZED:
        return {**other, "batch": 3, "size": 4}
    return {**other, "batch": 1 if zoo.name in EMBEDDED else 2}


# ---- one call after another --------------------------------------------------------------------


def test_a_call_equals_the_oracle(zoo: Zoo) -> None:
    check(zoo)
    assert not torch.equal(zoo.run(steps=STEPS), original(zoo.name).run(steps=STEPS))


def test_deep_and_shallow_blocks_are_cached(zoo: Zoo) -> None:
    zoo.run(steps=STEPS)
    blocks = len(zoo.blocks)
    spans = [entry.realised for entry in report_of(zoo.denoiser).entries if entry.realised]
    assert set(spans) == {Span(blocks - 2, blocks), Span(0, 2)}
    assert spans == sorted(spans, reverse=True), "deep before shallow"


def test_the_same_call_again_compiles_nothing(zoo: Zoo) -> None:
    check(zoo)
    with torch._dynamo.config.patch(error_on_recompile=True):
        check(zoo)
        check(zoo, steps=STEPS if zoo.name in RENOISED else 14, prompt=1, seed=1)


def test_another_request_and_then_the_first_one_again(zoo: Zoo) -> None:
    check(zoo, **other_request(zoo))
    check(zoo)


# ---- calls that end early ----------------------------------------------------------------------


def failing_after(calls: int, zoo: Zoo) -> Callable[..., Any]:
    """In place of the scheduler's `step`: fails after that many."""
    kind, left = type(zoo.pipe.scheduler), iter([True] * calls)

    def step(*args: Any, **kwargs: Any) -> Any:
        if next(left, False):
            return kind.step(zoo.pipe.scheduler, *args, **kwargs)
        raise KeyboardInterrupt

    return step


@pytest.mark.parametrize("done", [1, 4])
def test_a_failing_call_and_a_new_one_is_right(
    zoo: Zoo, done: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(zoo.pipe.scheduler, "step", failing_after(done, zoo))
    with pytest.raises(KeyboardInterrupt):
        zoo.run(steps=STEPS)
    monkeypatch.undo()
    assert len(report_of(zoo.denoiser).entries) == (done + 1) * zoo.branches()
    check(zoo, seed=1, prompt=1)


@pytest.mark.parametrize("zoo", sweep(INTERRUPTED, {*INTERRUPTED} & {*QUICK}), indirect=True)
def test_a_callback_interrupts_and_a_new_call_is_right(zoo: Zoo) -> None:
    def interrupt(pipe: Any, step: int, timestep: Tensor, tensors: Any) -> Any:
        pipe._interrupt = step == 3
        return tensors

    extra = {"callback_on_step_end": interrupt}
    result = zoo.pipe(**zoo.call(steps=STEPS), **extra)[0]
    table = table_by_level(zoo, steps=STEPS)
    assert len(report_of(zoo.denoiser).entries) == 4 * zoo.branches()
    assert torch.equal(result, expected(original(zoo.name), table, extra, steps=STEPS))
    check(zoo, seed=1)


# ---- few steps -----------------------------------------------------------------------------------


def test_few_steps_of_unknown_length_are_refused_and_never_cached() -> None:
    zoo, plain = compiled_pipe("pixart-dpm", lowering="eager"), original("pixart-dpm")
    with pytest.warns(deltapass.RefusalWarning, match=r"few-step trajectory(.|\n)*session\(steps="):
        result = zoo.run(steps=8)
    assert torch.equal(result, plain.run(steps=8))
    assert not any(entry.realised for entry in report_of(zoo.denoiser).entries)
    assert any(entry.refused for entry in report_of(zoo.denoiser).entries)


def test_few_steps_of_known_length_are_cached_with_the_defaults_of_the_paper() -> None:
    """Table 3: four steps, a seventh of the blocks, an interval of two, the boundary half-way."""
    zoo = compiled_pipe("pixart-dpm", lowering="eager", schedule="paper", steps=4)
    table = (None, None, None, Span(0, 1))
    assert torch.equal(zoo.run(steps=4), expected(original(zoo.name), table, steps=4))
    assert realised(report_of(zoo.denoiser)) == table


def test_lumina_is_refused_with_the_reason_and_runs_in_full() -> None:
    zoo = compiled_pipe("lumina2")
    with pytest.warns(deltapass.RefusalWarning, match="graph is broken into pieces"):
        result = zoo.run(guidance=1.0)
    assert torch.equal(result, original("lumina2").run(guidance=1.0))
    assert deltapass.last_report(zoo.denoiser) is None


# ---- beside others -------------------------------------------------------------------------------


class Acting:
    """A callback that is no function."""

    def __init__(self, act: Callable[..., None]) -> None:
        self.act = act

    def __call__(self, *known: Any) -> None:
        self.act(*known)


@pytest.mark.parametrize(
    ("attached", "kind"),
    [(False, None), (True, None), (False, Acting), (True, Acting)],
)
def test_a_call_in_a_callback_of_another_pipeline(attached: bool, kind: Any) -> None:
    """They share the denoiser and the prompt."""
    outer, inner = compiled_pipe("pixart-dpm"), make_pipe("pixart-dpm")
    inner.pipe.transformer = outer.pipe.transformer
    wanted, results = inner.run(steps=STEPS, seed=1), []

    def nested(step: int, timestep: Tensor, latents: Tensor) -> None:
        if step == 2:
            results.append(inner.run(steps=STEPS, seed=1))

    if attached:
        deltapass.attach(outer.pipe)
    outer.pipe(**outer.call(steps=STEPS), callback=kind(nested) if kind else nested)
    assert torch.equal(results[0], wanted)


def test_every_call_of_a_sampler_with_two_calls_a_timestep_is_a_step() -> None:
    zoo, plain = compiled_pipe("pixart-dpm"), make_pipe("pixart-dpm")
    for one in (zoo, plain):
        one.pipe.scheduler = HeunDiscreteScheduler()
    result = zoo.run(steps=STEPS)
    report = report_of(zoo.denoiser)
    assert [entry.step for entry in report.entries] == list(range(2 * STEPS - 1))
    assert report.cached >= STEPS - 4
    assert torch.equal(result, expected(plain, realised(report), steps=STEPS))


# ---- memory --------------------------------------------------------------------------------------


def test_deltas_go_with_the_model(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody says that a trajectory has ended: until the next one its last deltas stay."""
    kept = deltas_kept(monkeypatch)
    zoo = compiled_pipe("pixart-dpm")
    for _ in range(2):
        zoo.run(steps=STEPS)
        assert 0 < kept() <= 2
    del zoo
    torch._dynamo.reset()
    gc.collect()
    assert kept() == 0
