"""Every rival runs, changes what it should, and leaves the model as it was."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

pytest.importorskip("diffusers")
if importlib.util.find_spec("cache_dit") is None:  # imported by us alone, who tell it to be quiet
    pytest.skip("cache-dit is not installed", allow_module_level=True)

from models.streams import Call
from models.tiny import Tiny, make_tiny
from torch.utils._pytree import tree_map

from deltapass.bench.measuring.compiles import counting
from deltapass.bench.methods.method import Context
from deltapass.bench.methods.named import check_distinct, method_of
from deltapass.bench.rivals.table import RIVALS, enabled
from deltapass.bench.suite import MethodSpec
from deltapass.demo.embedded import load_embedded
from deltapass.errors import BenchError

# FasterCache makes its frequencies' mask so.
pytestmark = [
    pytest.mark.filterwarnings("ignore:torch.meshgrid"),
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning"),  # a scheduler
]
STEPS = 8
# Strong enough that random weights, whose steps hardly resemble each other, are cached at all.
SETTINGS: dict[str, dict[str, Any]] = {
    "cache-dit-static": {},
    "cache-dit-dynamic": {"residual_diff_threshold": 1e6, "max_warmup_steps": 2},
    "cache-dit-taylorseer": {"residual_diff_threshold": 1e6, "max_warmup_steps": 2},
    "first-block-cache": {"threshold": 1e6},
    "mag-cache": {"threshold": 1e6},
    "pyramid-attention-broadcast": {},
    "faster-cache": {},
    "taylorseer": {"disable_cache_before_step": 2},
}
FLUX = {"timestep_scale": 1000.0}
# Where a class needs something said besides.
BESIDES: dict[tuple[str, str], dict[str, Any]] = {
    ("sd3", "cache-dit-static"): {"forward_pattern": "Pattern_1"},
    ("sd3", "cache-dit-dynamic"): {"forward_pattern": "Pattern_1"},
    ("sd3", "cache-dit-taylorseer"): {"forward_pattern": "Pattern_1"},
    ("flux", "faster-cache"): {"is_guidance_distilled": True, **FLUX},
    ("flux", "pyramid-attention-broadcast"): FLUX,
}
# What does not work, as the package itself says it: the last block of SD3 gives no text.
FAILS = {
    ("sd3", "first-block-cache"): "unsupported operand type",
    ("sd3", "cache-dit-taylorseer"): "State 'transformer_blocks_Bn_residual' not found",
}
CASES = [(model, name) for model in ("dit", "pixart", "sd3", "flux") for name in RIVALS]


def calls_of(tiny: Tiny) -> list[Call]:
    return [tiny.call(1 - step / STEPS, seed=step) for step in range(STEPS)]


@torch.no_grad()
def trajectory(denoiser: Callable[..., Any], calls: list[Call]) -> list[torch.Tensor]:
    return [denoiser(*args, **kwargs)[0] for args, kwargs in calls]


def differing(some: list[torch.Tensor], others: list[torch.Tensor]) -> list[int]:
    pairs = enumerate(zip(some, others, strict=True))
    return [at for at, (one, other) in pairs if not torch.equal(one, other)]


def state(model: torch.nn.Module) -> list[tuple[str, type, list[str]]]:
    """All there is of a model but its tensors' values."""
    return [(name, type(part), sorted(vars(part))) for name, part in model.named_modules()]


@pytest.mark.parametrize(("model", "name"), CASES)
def test_a_rival_caches_and_leaves_the_model_as_it_was(model: str, name: str) -> None:
    tiny = make_tiny(model)
    calls = calls_of(tiny)
    plain, before = trajectory(tiny.model, calls), state(tiny.model)
    settings = {**SETTINGS[name], **BESIDES.get((model, name), {})}

    def run() -> None:
        with enabled(
            name,
            tiny.model,
            steps=STEPS,
            settings=settings,
            sample=lambda denoiser: trajectory(denoiser, calls),
        ) as running:
            first = trajectory(running, calls)
            running.begin()
            second = trajectory(running, calls)
        cached = differing(first, plain)
        assert 0 not in cached
        assert 2 <= len(cached) < STEPS
        assert not differing(first, second), "something of the first trajectory was read"

    if (failure := FAILS.get((model, name))) is None:
        run()
    else:
        with pytest.raises((TypeError, AssertionError), match=failure):
            run()
    assert state(tiny.model) == before
    assert not differing(trajectory(tiny.model, calls), plain)


def test_branches_of_a_step_are_kept_apart() -> None:
    tiny, steps = make_tiny("flux"), range(4)
    calls = {
        name: [tiny.call(1 - step / 4, seed=step + seed) for step in steps]
        for name, seed in (("cond", 0), ("uncond", 100))
    }
    settings = {"threshold": 1e6}
    with enabled("first-block-cache", tiny.model, steps=4, settings=settings) as running:
        together: dict[str, list[torch.Tensor]] = {name: [] for name in calls}
        for step in steps:
            for name, of_branch in calls.items():
                with running.cache_context(name):
                    together[name] += trajectory(running, [of_branch[step]])
    for name, of_branch in calls.items():
        with enabled("first-block-cache", tiny.model, steps=4, settings=settings) as running:
            assert not differing(trajectory(running, of_branch), together[name])


def test_fastercache_is_told_which_half_is_unconditional() -> None:
    tiny = make_tiny("dit")
    calls = calls_of(tiny)

    def swapped(values: Any) -> Any:
        return tree_map(lambda it: it.roll(1, 0) if torch.is_tensor(it) else it, values)

    with enabled("faster-cache", tiny.model, steps=STEPS) as running:
        wanted = swapped(trajectory(running, [swapped(call) for call in calls]))
        running.begin()
        as_is = trajectory(running, calls)
    settings = {"conditional_first": True}
    with enabled("faster-cache", tiny.model, steps=STEPS, settings=settings) as running:
        found = trajectory(running, calls)
    assert not differing(found, wanted)
    assert differing(found, as_is)
    assert "forward" not in vars(tiny.model)


@pytest.mark.parametrize("name", ["cache-dit-static", "mag-cache"])
def test_a_pipeline_runs_a_rival_in_place_of_its_transformer(name: str) -> None:
    pipeline = load_embedded("nouns")
    pipeline.set_progress_bar_config(disable=True)
    transformer = pipeline.transformer

    def draw(_: object = None) -> torch.Tensor:
        generator = torch.Generator().manual_seed(0)
        prompt = pipeline.examples([0])
        images: torch.Tensor = pipeline(
            prompt, num_inference_steps=4, generator=generator, output_type="pt"
        ).images
        return images

    plain = draw()
    # A second trajectory is told from the first by the pipeline alone.
    with enabled(name, pipeline, steps=4, settings=SETTINGS[name], sample=draw) as running:
        assert pipeline.transformer is running
        first, second = draw(), draw()
    assert torch.equal(first, second)
    assert not torch.equal(first, plain)
    assert pipeline.transformer is transformer
    assert torch.equal(draw(), plain)


# ---- compiled ------------------------------------------------------------------------------------


@pytest.fixture
def settings_of_torch() -> Iterator[None]:
    limit = torch._dynamo.config.recompile_limit
    yield
    assert torch._dynamo.config.recompile_limit == limit


@pytest.mark.usefixtures("settings_of_torch")
def test_a_compiled_rival_caches_in_several_graphs() -> None:
    tiny = make_tiny("pixart")
    calls = calls_of(tiny)[:4]
    plain = trajectory(tiny.model, calls)
    with counting() as alone:
        trajectory(torch.compile(tiny.model, backend="eager"), calls)
    settings = {"compiled": {"backend": "eager"}}
    with (
        counting() as counted,
        enabled("cache-dit-static", tiny.model, steps=4, settings=settings) as running,
    ):
        compiled = trajectory(running, calls)
    with enabled("cache-dit-static", tiny.model, steps=4) as running:
        assert not differing(trajectory(running, calls), compiled)
    assert differing(compiled, plain) == [1, 3]
    assert (alone.graphs, alone.breaks, alone.recompiles) == (1, 0, 0)
    assert counted.graphs > 1
    assert counted.breaks > 0
    assert counted.breaks >= len(counted.reasons) > 0


def test_recompiles_are_counted() -> None:
    with counting() as counted:
        doubled = torch.compile(lambda x: 2 * x, backend="eager", dynamic=False)
        for size in (1, 2, 3, 3):
            doubled(torch.ones(size))
    assert (counted.graphs, counted.breaks, counted.recompiles) == (3, 0, 2)


# ---- what is refused -----------------------------------------------------------------------------


def test_an_unknown_rival_is_named() -> None:
    with (
        pytest.raises(BenchError, match=r"no rival 'tailorseer'.*Did you mean 'taylorseer'"),
        enabled("tailorseer", make_tiny("dit").model, steps=4),
    ):
        pass


@pytest.mark.parametrize("name", ["cache-dit-dynamic", "first-block-cache"])
def test_settings_that_a_rival_does_not_know_are_refused(name: str) -> None:
    model = make_tiny("dit").model
    before = state(model)
    with (
        pytest.raises(BenchError, match=r"refuses the settings.*tresholt"),
        enabled(name, model, steps=4, settings={"tresholt": 1.0}),
    ):
        pass
    assert state(model) == before


def test_a_rival_that_finds_nothing_is_no_silent_plain_model() -> None:
    settings = {"cache_identifiers": ["no_such_layer"]}
    with (
        pytest.raises(BenchError, match="finds no layer of DiTTransformer2DModel to cache"),
        enabled("taylorseer", make_tiny("dit").model, steps=4, settings=settings),
    ):
        pass


def test_magcache_asks_for_a_trajectory_of_all_its_steps() -> None:
    tiny = make_tiny("dit")
    with (
        pytest.raises(BenchError, match="needs ratios"),
        enabled("mag-cache", tiny.model, steps=STEPS),
    ):
        pass
    calls = calls_of(tiny)[1:]
    with (
        pytest.raises(BenchError, match="did not see a trajectory of 8 steps"),
        enabled("mag-cache", tiny.model, steps=STEPS, sample=lambda it: trajectory(it, calls)),
    ):
        pass


def test_methods_of_the_suite_name_every_rival() -> None:
    context = Context(model="toy", steps=20)
    made = [
        method_of(MethodSpec(name=name, settings={"compiled": True}), context) for name in RIVALS
    ]
    assert [method.rival for method in made] == list(RIVALS)
    assert {method.kind for method in made} == {"rival"}
    check_distinct(made)
