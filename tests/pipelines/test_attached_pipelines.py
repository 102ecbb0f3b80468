"""Real pipelines, attached: every call is the eager Delta-Cache of the schedule, bit by bit.

Compiled code is kept for the whole module, as in a server: pipelines of one model class share it.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

pytest.importorskip("diffusers")
pytest.importorskip("transformers")

import diffusers
from models.zoo import NUMPY_WARNINGS, Zoo, make_pipe
from pipeline_case import (
    CACHED,
    INTERRUPTED,
    OPTIONS,
    SCHEDULE,
    attached_pipe,
    check_attached,
    deltas_kept,
    expected,
    original,
    realised,
    refusals,
    report_of,
    table_of,
)
from sweeps import sweep

import deltapass
from deltapass.schedule.rules import Span
from deltapass.sessions import changes
from deltapass.sessions.session import active_session

pytestmark = [pytest.mark.keeps_compiled, pytest.mark.filterwarnings(NUMPY_WARNINGS)]

# Samplers of one model; joint streams, from a later step on; blocks of two kinds, and residuals;
# guidance by a call of its own.
QUICK = ("pixart-dpm", "pixart-lcm", "sd3-img2img", "flux-controlnet", "wan")
CONTEXTS = {"flux": "cond", "cogvideox": "cond_uncond", "hunyuanvideo": "cond"}


def wanted(zoo: Zoo, extra: dict[str, Any] | None = None, **overrides: Any) -> Tensor:
    """The same call with the schedule's Delta-Cache in plain PyTorch."""
    return expected(original(zoo.name), table_of(zoo, **overrides), extra, **overrides)


@pytest.fixture(scope="module", params=sweep(CACHED, QUICK))
def zoo(request: pytest.FixtureRequest) -> Zoo:
    return attached_pipe(request.param)


def other_request(zoo: Zoo) -> dict[str, Any]:
    """Everything else than by default: steps, guidance on or off, batch, prompt and size."""
    guidance = 1.0 if zoo.defaults.guidance > 1 else 4.0
    other = {"steps": 7, "guidance": guidance, "batch": 3, "prompt": 1, "seed": 1, "size": 4}
    return {key: value for key, value in other.items() if key not in zoo.fixed}


# ---- one call after another --------------------------------------------------------------------


def test_a_call_equals_the_oracle(zoo: Zoo) -> None:
    check_attached(zoo)
    assert not torch.equal(wanted(zoo), original(zoo.name).run()), "caching must matter"


def test_the_same_call_again_compiles_nothing(zoo: Zoo) -> None:
    check_attached(zoo)
    graphs = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    with torch._dynamo.config.patch(error_on_recompile=True):
        check_attached(zoo)
        check_attached(zoo, steps=9, prompt=1)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == graphs


def test_branches_are_named_by_the_cache_context(zoo: Zoo) -> None:
    zoo.run()
    names = {entry.branch_label for entry in report_of(zoo.pipe).entries}
    assert names == ({"cond", "uncond"} if zoo.separate else {CONTEXTS.get(zoo.name, "-")})


def test_another_request_and_then_the_first_one_again(zoo: Zoo) -> None:
    check_attached(zoo, **other_request(zoo))
    check_attached(zoo)


def test_conditioning_is_read_when_it_is_a_new_tensor(
    zoo: Zoo, monkeypatch: pytest.MonkeyPatch
) -> None:
    reads, after = [], []
    read, step = changes.values_of, type(zoo.pipe.scheduler).step

    def reading(tensor: Tensor) -> Any:
        reads.append(tensor)
        return read(tensor)

    def stepping(*args: Any, **kwargs: Any) -> Any:
        after.append(len(reads))
        return step(*args, **kwargs)

    zoo.run()
    monkeypatch.setattr(changes, "values_of", reading)
    monkeypatch.setattr(type(zoo.pipe.scheduler), "step", stepping)
    zoo.run()
    assert after[0] > 0
    # Only the pipeline of Flux with a ControlNet makes its guidance anew at every step.
    assert (len(set(after)) == 1) == (zoo.name != "flux-controlnet")


# ---- calls that end early ----------------------------------------------------------------------


def stop_after(zoo: Zoo, steps: int, stop: Callable[[Any], None]) -> dict[str, Any]:
    """Arguments by which a pipeline calls `stop(pipe)` after that many steps, if it can."""
    left = iter(range(steps - 1, -100, -1))

    def on_step_end(pipe: Any, step: int, timestep: Tensor, tensors: Any) -> Any:
        if next(left) == 0:
            stop(pipe)
        return tensors

    known = inspect.signature(type(zoo.pipe).__call__).parameters
    if "callback_on_step_end" in known:
        return {"callback_on_step_end": on_step_end}
    return {"callback": partial(on_step_end, zoo.pipe)} if "callback" in known else {}


def interrupt(pipe: Any) -> None:
    pipe._interrupt = True


def fail(pipe: Any) -> None:
    raise KeyboardInterrupt


@pytest.mark.parametrize("zoo", sweep(INTERRUPTED, {*INTERRUPTED} & {*QUICK}), indirect=True)
@pytest.mark.parametrize("done", [1, 2])
def test_a_callback_interrupts_and_a_new_call_is_right(zoo: Zoo, done: int) -> None:
    result = zoo.pipe(**zoo.call(), **stop_after(zoo, done, interrupt))[0]
    assert report_of(zoo.pipe).calls == done * zoo.branches()
    assert report_of(zoo.pipe).as_planned
    assert torch.equal(result, wanted(zoo, stop_after(zoo, done, interrupt)))
    check_attached(zoo)


def test_a_failing_call_and_a_new_one_is_right(zoo: Zoo, monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = stop_after(zoo, 2, fail)
    if not arguments:  # DiT's pipeline has no callback: its steps end in an error instead

        def two(steps: Tensor) -> Iterator[Tensor]:
            yield from steps[:2]
            fail(zoo.pipe)

        monkeypatch.setattr(zoo.pipe, "progress_bar", two)
    kinds = type(zoo.pipe.scheduler), type(zoo.pipe)
    with pytest.raises(KeyboardInterrupt):
        zoo.pipe(**zoo.call(), **arguments)
    monkeypatch.undo()
    assert kinds == (type(zoo.pipe.scheduler), type(zoo.pipe))
    assert report_of(zoo.pipe).calls == 2 * zoo.branches()
    assert active_session() is None
    check_attached(zoo)


@pytest.fixture
def kept(monkeypatch: pytest.MonkeyPatch) -> Callable[[], int]:
    """How many deltas of those made since are still in memory."""
    return deltas_kept(monkeypatch)


def test_deltas_are_freed_after_a_call(zoo: Zoo, kept: Callable[[], int]) -> None:
    zoo.run()
    assert kept() == 0


@pytest.mark.parametrize("stop", [interrupt, fail])
def test_deltas_are_freed_after_a_call_that_ends_early(
    stop: Callable[[Any], None], kept: Callable[[], int]
) -> None:
    zoo = attached_pipe("sd3")
    with suppress(KeyboardInterrupt):
        zoo.pipe(**zoo.call(), **stop_after(zoo, 1, stop))
    assert kept() == 0


# ---- shapes as torch.compile treats them if not told ---------------------------------------------


def test_dynamic_shapes() -> None:
    """From the second shape on, the place of a timestep in its tensor is one more variable."""
    torch._dynamo.reset()  # which remembers the shapes of other tests
    zoo = make_pipe("sd3-img2img")
    zoo.pipe.transformer = torch.compile(zoo.denoiser, backend="deltadit", options=OPTIONS)
    deltapass.attach(zoo.pipe)
    for guidance in (4.0, 1.0, 4.0):
        check_attached(zoo, guidance=guidance)


# ---- other samplers ------------------------------------------------------------------------------

SAMPLERS = (
    ("pixart-dpm", "HeunDiscreteScheduler", {}),  # two calls a step
    ("sd3", "FlowMatchHeunDiscreteScheduler", {}),
    ("pixart-dpm", "DDIMScheduler", {"eta": 1.0}),  # the signature of `step` is looked at
    ("pixart-dpm", "EulerAncestralDiscreteScheduler", {}),
    ("cogvideox", "CogVideoXDPMScheduler", {}),  # `step` gets the last timestep too
    ("flux", "FlowMatchEulerDiscreteScheduler", {"sigmas": [1.0, 0.7, 0.5, 0.3, 0.1]}),
    ("pixart-dpm", "PNDMScheduler", {}),  # without timesteps before they are set
)


@pytest.mark.parametrize(("name", "kind", "extra"), SAMPLERS)
def test_other_samplers(name: str, kind: str, extra: Any) -> None:
    """A step is a call of the model: as many as the sampler has timesteps."""
    zoo, plain = attached_pipe(name), make_pipe(name)
    for one in (zoo, plain):
        one.pipe.scheduler = getattr(diffusers, kind)()
    plain.pipe(**plain.call(), **extra)
    table = SCHEDULE.table(len(plain.pipe.scheduler.timesteps), len(plain.blocks))
    assert torch.equal(zoo.pipe(**zoo.call(), **extra)[0], expected(plain, table, extra))
    assert realised(report_of(zoo.pipe)) == table


# ---- few steps -----------------------------------------------------------------------------------


def test_lcm_has_the_schedule_of_the_paper() -> None:
    """Table 3: four steps, a seventh of the blocks, an interval of two, the boundary half-way."""
    zoo = attached_pipe("pixart-lcm", lowering="eager", schedule="paper")
    table = (None, Span(3, 4), None, Span(0, 1))
    assert torch.equal(zoo.run(), expected(original(zoo.name), table))
    assert realised(report_of(zoo.pipe)) == table
    assert report_of(zoo.pipe).as_planned


@pytest.mark.parametrize("steps", [2, 3])
def test_very_few_steps(zoo: Zoo, steps: int) -> None:
    assert torch.equal(zoo.run(steps=steps), wanted(zoo, steps=steps))
    assert report_of(zoo.pipe).as_planned
    assert report_of(zoo.pipe).calls == zoo.branches() * zoo.steps_run(steps=steps)


# ---- the one that is refused ---------------------------------------------------------------------


def test_lumina_is_refused_with_the_reason_and_runs_in_full() -> None:
    """Its forward looks at the lengths of the masks, so Dynamo cuts it into several graphs."""
    zoo = attached_pipe("lumina2")
    with pytest.warns(deltapass.RefusalWarning) as caught:
        result = zoo.run(guidance=1.0)  # without guidance, which has twice as many graphs
    texts = refusals(caught)
    assert any("graph is broken into pieces" in text and "fullgraph=True" in text for text in texts)
    assert torch.equal(result, original("lumina2").run(guidance=1.0))
    assert all(entry.refused for entry in report_of(zoo.pipe).entries)
