"""The tiny pipelines do what tests take from them, and the oracle inside them is Delta-Cache."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor, nn

pytest.importorskip("diffusers")
pytest.importorskip("transformers")

from models import noise
from models.zoo import NUMPY_WARNINGS, ZOO_NAMES, Zoo, make_pipe
from pipeline_oracle import PipelineOracle, oracle_in

from deltapass.schedule.rules import Span

pytestmark = pytest.mark.filterwarnings(NUMPY_WARNINGS)

every_pipeline = pytest.mark.parametrize("name", ZOO_NAMES)
IMAGE_TO_IMAGE = ("sd3-img2img", "flux-img2img")
SEPARATE = ("flux-cfg", "lumina2", "wan")
CONTROLLED = ("sd3-controlnet", "flux-controlnet")

pipe_of: Callable[[str], Zoo] = cache(make_pipe)


@cache
def plain(name: str) -> Tensor:
    return pipe_of(name).run()


@contextmanager
def watched(denoiser: nn.Module) -> Iterator[list[Tensor]]:
    """The timesteps of all calls."""
    seen: list[Tensor] = []
    handle = denoiser.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(kwargs["timestep"].clone()), with_kwargs=True
    )
    try:
        yield seen
    finally:
        handle.remove()


def alternating(zoo: Zoo, span: Span | None = None, **overrides: Any) -> list[Span | None]:
    """Refresh and cached in turn, from the first step that is run; the span is deep if not said."""
    span = span or Span(1, len(zoo.blocks))
    start, steps = zoo.start(**overrides), zoo.request(**overrides).steps
    return [span if step > start and (step - start) % 2 else None for step in range(steps)]


# ---- pipelines ---------------------------------------------------------------------------------


@every_pipeline
def test_one_seed_gives_the_same_bits_and_another_seed_others(name: str) -> None:
    zoo = pipe_of(name)
    torch.manual_seed(1)  # a pipeline that drew from the global generator would differ
    assert torch.equal(zoo.run(), plain(name))
    assert not torch.equal(zoo.run(seed=1), plain(name))
    assert torch.isfinite(plain(name)).all()


@every_pipeline
def test_a_pipeline_built_again_has_the_same_weights(name: str) -> None:
    torch.manual_seed(1)
    assert torch.equal(make_pipe(name).run(), plain(name))


@every_pipeline
@pytest.mark.parametrize("guidance", [1.0, 4.0])
def test_every_step_calls_the_denoiser_once_a_branch(name: str, guidance: float) -> None:
    zoo = pipe_of(name)
    branches = zoo.branches(guidance=guidance)
    assert branches == (2 if name in SEPARATE and guidance > 1 else 1)
    with watched(zoo.denoiser) as seen:
        zoo.run(guidance=guidance, steps=5)
    assert len(seen) == branches * zoo.steps_run(steps=5)
    steps = [seen[index : index + branches] for index in range(0, len(seen), branches)]
    assert all(torch.equal(first, other) for first, *others in steps for other in others)
    values = [step[0].flatten()[0].item() for step in steps]
    assert len(set(values)) == len(values)
    assert values == sorted(values, reverse=name != "lumina2"), "only Lumina's timesteps rise"


@every_pipeline
def test_prompt_and_guidance_and_batch_change_the_result(name: str) -> None:
    zoo = pipe_of(name)
    assert not torch.equal(zoo.run(prompt=1), plain(name))
    other = 2.0 if zoo.defaults.guidance > 2 else 4.0
    assert not torch.equal(zoo.run(guidance=other), plain(name))
    assert zoo.run(batch=2).shape == (2, *plain(name).shape[1:])


@every_pipeline
def test_latents_have_the_size_asked_for(name: str) -> None:
    zoo = pipe_of(name)
    if "size" in zoo.fixed:
        with pytest.raises(ValueError, match="has no choice"):
            zoo.run(size=4)
    else:
        assert zoo.run(size=4).numel() * 4 == plain(name).numel()


@pytest.mark.parametrize("name", IMAGE_TO_IMAGE)
@pytest.mark.parametrize(("strength", "start"), [(0.6, 2), (0.5, 3), (1.0, 0)])
def test_image_to_image_starts_at_the_step_said(name: str, strength: float, start: int) -> None:
    zoo = pipe_of(name)
    assert zoo.start(strength=strength) == start
    with watched(zoo.denoiser) as seen:
        zoo.run(strength=strength)
    scale = 1000 if name.startswith("flux") else 1
    expected = zoo.pipe.scheduler.timesteps[start:]
    assert torch.allclose(scale * torch.stack([value[0] for value in seen]), expected)


@pytest.mark.parametrize("name", CONTROLLED)
def test_control_residuals_matter(name: str) -> None:
    zoo = pipe_of(name)
    without = zoo.pipe(**zoo.call(), controlnet_conditioning_scale=0.0)[0]
    assert not torch.equal(without, plain(name))


# ---- the oracle --------------------------------------------------------------------------------


@every_pipeline
def test_oracle_of_refreshes_is_the_plain_pipeline(name: str) -> None:
    zoo = pipe_of(name)
    with oracle_in(zoo, [None] * zoo.steps_default) as oracle:
        assert torch.equal(zoo.run(), plain(name))
    assert oracle.calls == zoo.branches() * zoo.steps_run()
    assert set(oracle.blocks_run) == {len(zoo.blocks)}


@every_pipeline
@pytest.mark.parametrize("order", [0, 1])
def test_oracle_skips_blocks_on_cached_steps(name: str, order: int) -> None:
    zoo = pipe_of(name)
    table = alternating(zoo)
    with oracle_in(zoo, table, order) as oracle:
        result = zoo.run()
    assert torch.isfinite(result).all()
    assert not torch.equal(result, plain(name))
    steps = table[zoo.start() :]
    expected = [1 if span else len(zoo.blocks) for span in steps for _ in range(zoo.branches())]
    assert oracle.blocks_run == expected
    with oracle:  # entered again, it remembers nothing
        assert torch.equal(zoo.run(), result)
    assert oracle.blocks_run == expected


@every_pipeline
def test_shallow_spans_and_order_one_give_other_results(name: str) -> None:
    zoo = pipe_of(name)
    deep, shallow = alternating(zoo), alternating(zoo, Span(0, len(zoo.blocks) - 1))
    results = []
    for table, order in ((deep, 0), (shallow, 0), (deep, 1)):
        with oracle_in(zoo, table, order):
            results.append(zoo.run())
    assert not torch.equal(results[0], results[1])
    assert not torch.equal(results[0], results[2])


@pytest.mark.parametrize("name", ["flux-cfg", "wan"])  # Lumina's branches differ in length
def test_deltas_of_another_branch_would_be_seen(name: str) -> None:
    zoo = pipe_of(name)
    table = alternating(zoo)
    with oracle_in(zoo, table):
        apart = zoo.run()
    each_call = [span for span in table for _ in range(2)]
    with PipelineOracle(
        zoo.denoiser, zoo.blocks, zoo.streams, each_call
    ):  # the prompt's step reads the other's deltas
        mixed = zoo.run()
    assert not torch.equal(mixed, apart)


@pytest.mark.parametrize(
    ("name", "stop", "same"),
    [
        ("sd3-controlnet", 4, True),  # nothing is added after the last block
        ("sd3-controlnet", 3, False),
        ("flux-controlnet", 5, False),
    ],
)
def test_residuals_of_a_cached_step_count_only_after_the_span(
    name: str, stop: int, same: bool
) -> None:
    zoo = pipe_of(name)
    results = []
    for end in (1.0, 0.5):  # with 0.5 the second step has no residuals
        with oracle_in(zoo, [None, Span(0, stop)]):
            results.append(zoo.pipe(**zoo.call(steps=2), control_guidance_end=end)[0])
    assert torch.equal(*results) == same


class Block(nn.Module):
    def __init__(self, slope: float) -> None:
        super().__init__()
        self.slope = slope

    def forward(self, hidden_states: Tensor) -> Tensor:
        return hidden_states + torch.tanh(self.slope * hidden_states)


class Added(nn.Module):
    """Adds a residual after every block, as models with a ControlNet do."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Block(slope) for slope in (0.5, 1.0, 2.0))

    def forward(self, x: Tensor, residuals: Tensor) -> Tensor:
        for block, residual in zip(self.blocks, residuals, strict=True):
            x = block(x) + residual
        return x


def test_a_cached_span_is_live_in_plus_delta_and_then_its_fresh_residual() -> None:
    model = Added()
    first, second, third = model.blocks
    x, residuals = noise(0, 3, 8), noise(1, 3, 3, 8)
    with PipelineOracle(model, model.blocks, table=[None, Span(0, 2), None]) as oracle:
        results = [model(x[step], residuals[step]) for step in range(3)]
    delta = second(first(x[0]) + residuals[0, 0]) - x[0]
    cached = delta + x[1] + residuals[1, 1]
    assert torch.equal(results[0], model(x[0], residuals[0]))
    assert torch.equal(results[1], third(cached) + residuals[1, 2])
    assert torch.equal(results[2], model(x[2], residuals[2]))
    assert oracle.blocks_run == [3, 1, 3]


def test_branches_take_turns_and_have_deltas_of_their_own() -> None:
    model, zeros = Added(), torch.zeros(3, 8)
    x = noise(0, 4, 8)
    with PipelineOracle(model, model.blocks, table=[None, Span(0, 3)], branches=2) as oracle:
        results = [model(value, zeros) for value in x]
    assert oracle.calls == 4
    for branch in (0, 1):
        delta = model(x[branch], zeros) - x[branch]
        assert torch.equal(results[2 + branch], delta + x[2 + branch])


def test_the_table_counts_steps_from_the_start_of_the_schedule() -> None:
    model, zeros = Added(), torch.zeros(3, 8)
    with PipelineOracle(model, model.blocks, table=[None, None, Span(1, 3)], start=1) as oracle:
        for step in range(2):
            model(noise(step, 8), zeros)
        with pytest.raises(IndexError, match="call 2 is step 3 of 3"):
            model(noise(2, 8), zeros)
    assert oracle.blocks_run == [3, 1]


@pytest.mark.parametrize(("table", "start"), [([], 0), ([Span(0, 2), None], 0), ([None], 1)])
def test_the_first_step_must_be_a_refresh(table: list[Span | None], start: int) -> None:
    model = Added()
    with pytest.raises(ValueError, match="is no refresh in the table"):
        PipelineOracle(model, model.blocks, table=table, start=start)


def test_everything_is_put_back_after_an_error_too() -> None:
    zoo = pipe_of("wan")
    modules = (zoo.denoiser, *zoo.blocks)
    with pytest.raises(IndexError), oracle_in(zoo, [None]):  # fewer steps than the pipeline runs
        zoo.run()
    assert not any("forward" in vars(module) for module in modules)
    with oracle_in(zoo, [None] * 6):
        assert "forward" in vars(zoo.denoiser)
        zoo.run()
    assert not any("forward" in vars(module) for module in modules)
    assert torch.equal(zoo.run(), plain("wan"))
