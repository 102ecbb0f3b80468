from __future__ import annotations

from typing import Any

import pytest
import torch

pytest.importorskip("diffusers")
pytest.importorskip("transformers")

from models.zoo import NUMPY_WARNINGS, make_pipe

from deltapass.errors import LoopError
from deltapass.pipelines.attach import attachment_of
from deltapass.schedule.rules import Schedule
from deltapass.tuning.loops import open_loop
from deltapass.tuning.pipeline_loop import dealt

pytestmark = [pytest.mark.keeps_compiled, pytest.mark.filterwarnings(NUMPY_WARNINGS)]

STEPS = 4
CACHING = Schedule(cached_blocks=2, boundary=0.5)


def call_of(zoo: Any) -> dict[str, Any]:
    """How a tiny pipeline is called, without what a loop says itself."""
    own = ("generator", "output_type", "num_inference_steps", "return_dict", "latents")
    return {name: value for name, value in zoo.call().items() if name not in own}


def test_a_pipeline_is_compiled_attached_and_put_back() -> None:
    zoo = make_pipe("pixart-dpm")
    pipe, plain = zoo.pipe, zoo.pipe.transformer
    with open_loop(pipe, call=call_of(zoo), steps=STEPS) as loop:
        assert pipe.transformer is not plain and attachment_of(pipe) is not None
        full = loop.run([1, 2])
        cached = loop.run([1, 2], CACHING)
        fewer = loop.run([1, 2], steps=3)
        torch._dynamo.utils.counters.clear()
        assert torch.equal(loop.run([1, 2]).samples, full.samples)
        assert not torch._dynamo.utils.counters["stats"]
    assert pipe.transformer is plain and attachment_of(pipe) is None
    assert len(full.samples) == 2 and full.report.cached == 0
    assert cached.report.cached == 2 and cached.report.forced == 0
    assert (full.steps, fewer.steps) == (STEPS, 3)


def test_samples_are_those_of_the_plain_pipeline() -> None:
    zoo = make_pipe("pixart-dpm")
    call = call_of(zoo)
    made = [torch.Generator().manual_seed(seed) for seed in (5, 6)]
    with torch.no_grad():
        wanted = zoo.pipe(
            **call,
            num_images_per_prompt=2,
            generator=made,
            output_type="latent",
            num_inference_steps=STEPS,
        ).images
    with open_loop(zoo.pipe, call=call, steps=STEPS) as loop:
        assert torch.equal(loop.run([5, 6]).samples, wanted)


def test_what_samples_is_known() -> None:
    zoo = make_pipe("pixart-dpm")
    with open_loop(zoo.pipe, call={**call_of(zoo), "guidance_scale": 3.5}, steps=STEPS) as loop:
        sampler = loop.sampler
    assert sampler.scheduler == type(zoo.pipe.scheduler).__name__
    assert dict(sampler.settings)["solver_order"] == zoo.pipe.scheduler.config.solver_order
    assert sampler.guidance == 3.5


def test_steps_of_the_call_count() -> None:
    zoo = make_pipe("pixart-dpm")
    call = {**call_of(zoo), "num_inference_steps": 3}
    with open_loop(zoo.pipe, call=call) as loop:
        assert loop.run([1]).steps == 3
    with pytest.raises(LoopError, match="steps is 5 and"), open_loop(zoo.pipe, call=call, steps=5):
        pass


def test_lists_of_prompts_are_dealt_by_seed() -> None:
    call = {"prompt": ["a", "b", "c"], "height": 8, "sigmas": [1.0, 0.5]}
    assert dealt(call, [4, 0]) == {"prompt": ["b", "a"], "height": 8, "sigmas": [1.0, 0.5]}


def test_a_call_may_be_a_function_of_the_seeds() -> None:
    zoo = make_pipe("pixart-dpm")
    asked = []

    def call(seeds: Any) -> dict[str, Any]:
        asked.append(tuple(seeds))
        return {**call_of(zoo), "num_images_per_prompt": len(seeds)}

    with open_loop(zoo.pipe, call=call, steps=STEPS) as loop:
        assert len(loop.run([7, 8]).samples) == 2
    assert (7, 8) in asked
