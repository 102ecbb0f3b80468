"""What deltapass adds to a call, beyond the lowered bodies: run by `make bench`.

28 blocks and 604 weights (the goals are for 566), with bodies that do nothing: all that is left is
ours, the program that calls the bodies included, and calling 30 empty functions. A round is a
trajectory of 20 steps; a figure is the median over rounds of a call of it, less that of the same
loop around a function that does nothing, in turns in one process, in CPU time of the calling
thread, which other work on the machine disturbs least. `extra_info` holds it, with its goal;
--benchmark-json=FILE keeps it.
"""

from __future__ import annotations

import contextlib
import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import pytest
import torch
from diffusers import PixArtTransformer2DModel
from measure import trajectory_timesteps

import deltapass
from deltapass.backend import compile_graph
from deltapass.compiler.tracing import trace
from deltapass.graph.program import Body, Role
from deltapass.options import parse_options
from deltapass.selector.selector import Selector
from deltapass.sessions.native import SWITCH, library_path

STEPS = 20
ROUNDS = 50
GOALS = {"session": 60.0, "timestep": 90.0, "attached": 60.0, "second branch": 35.0}


class NullLowering:
    """Bodies that give tensors of the right shapes, made beforehand, and do nothing."""

    exact = True

    def can_lower(self, body: Body) -> None:
        return None

    def lower(self, body: Body) -> Callable[..., tuple[torch.Tensor, ...]]:
        made = tuple(torch.zeros(1, dtype=spec.dtype).expand(spec.shape) for spec in body.outputs)
        return lambda *_: made

    def plain(self, module: torch.fx.GraphModule, arguments: Any) -> Any:
        return module.forward


class Subject(NamedTuple):
    """A selector, and the arguments of every step of a trajectory."""

    selector: Selector
    arguments: list[tuple[Any, ...]]
    owner: Any  # keeps the weights alive


@pytest.fixture(scope="module")
def subject() -> Subject:
    """The same weights at every step; sample and timestep of its own."""
    model = PixArtTransformer2DModel(
        sample_size=8,
        num_attention_heads=2,
        attention_head_dim=16,
        cross_attention_dim=32,
        caption_channels=48,
        in_channels=4,
        out_channels=8,
        use_additional_conditions=False,
    )
    model = model.eval().requires_grad_(False)
    call = {
        "encoder_hidden_states": torch.randn(2, 5, 48),
        "timestep": torch.full((2,), 999.0),
        "added_cond_kwargs": {"resolution": None, "aspect_ratio": None},
        "return_dict": False,
    }
    graph, inputs = trace(model, (torch.randn(2, 4, 8, 8),), call)
    options = parse_options({"lowering": "eager"}, None)
    selector = compile_graph(graph, inputs, options, NullLowering())
    given = selector.model.inputs
    weights = sum(i.role is Role.WEIGHT for i in given)
    assert (selector.model.blocks, weights) == (28, 604)
    roles = [i.role for i in given]
    steps = []
    for timestep in trajectory_timesteps(STEPS):
        step = list(inputs)
        step[roles.index(Role.TIMESTEP)] = torch.full((2,), timestep)
        sample = inputs[roles.index(Role.SAMPLE)]  # moves little, as in sampling
        step[roles.index(Role.SAMPLE)] = sample + 0.05 * torch.randn_like(sample)
        steps.append(tuple(step))
    return Subject(selector, steps, model)


@pytest.fixture(params=["native", "python"], autouse=True)
def weights_check(
    request: pytest.FixtureRequest, subject: Subject, monkeypatch: pytest.MonkeyPatch
) -> Iterator[str]:
    """With the compiled check of weights, waiting for it to be built, and without."""
    watch = subject.selector._weights
    monkeypatch.setenv(SWITCH, str(int(request.param == "native")))
    fresh = type(watch)(list(watch._positions))
    monkeypatch.setattr(subject.selector, "_weights", fresh)
    if request.param == "native":
        deadline = time.monotonic() + 300
        while fresh._native.get() is None and time.monotonic() < deadline:
            time.sleep(0.01)
        assert fresh._native.get() is not None, f"not built: see {library_path().parent}"
    yield request.param


def measured(benchmark: Any, name: str, calls: int, ours: Any, bare: Any) -> None:
    """Microseconds a call of `ours` beyond `bare`, interleaved."""
    ours(), bare()
    pairs = []
    for _ in range(ROUNDS):
        started = time.thread_time()
        ours()
        between = time.thread_time()
        bare()
        pairs.append((between - started, time.thread_time() - between))
    added = [1e6 * (one - other) / calls for one, other in pairs]
    benchmark.extra_info["us_per_call"] = round(statistics.median(added), 1)
    benchmark.extra_info["best_us_per_call"] = round(min(added), 1)
    benchmark.extra_info["goal_us"] = GOALS[name]
    print(f"\n{name}: {benchmark.extra_info}")
    benchmark.pedantic(ours, rounds=10, iterations=1)


def nothing(*_: Any) -> None:
    return None


def test_session(benchmark: Any, subject: Subject) -> None:
    """A session that is told every step."""

    def run(call: Any) -> None:
        with deltapass.session(steps=STEPS) as session:
            for at, arguments in enumerate(subject.arguments):
                session.step(at)
                call(*arguments)

    def bare() -> None:
        for arguments in subject.arguments:
            nothing(*arguments)

    with torch.no_grad():
        measured(benchmark, "session", STEPS, lambda: run(subject.selector), bare)


def test_timestep(benchmark: Any, subject: Subject) -> None:
    """Nothing told: the timestep input says which step it is."""

    def run(call: Any) -> None:
        for arguments in subject.arguments:
            call(*arguments)

    with torch.no_grad():
        measured(benchmark, "timestep", STEPS, lambda: run(subject.selector), lambda: run(nothing))


def test_second_branch(benchmark: Any, subject: Subject) -> None:
    """What the second of two branches adds to a step."""

    def run(branches: tuple[str, ...]) -> None:
        with deltapass.session(steps=STEPS) as session:
            for at, arguments in enumerate(subject.arguments):
                for branch in branches:
                    session.step(at, branch=branch)
                    subject.selector(*arguments)

    with torch.no_grad():
        measured(
            benchmark,
            "second branch",
            STEPS,
            lambda: run(("cond", "uncond")),
            lambda: run(("cond",)),
        )


class Scheduler:
    """As much of a scheduler as a pipeline needs."""

    def __init__(self) -> None:
        self.timesteps = torch.zeros(0)

    def set_timesteps(self, steps: int) -> None:
        self.timesteps = torch.arange(steps, 0, -1)

    def step(self, output: Any, timestep: Any, sample: Any) -> None:
        return None


class Denoiser(torch.nn.Module):
    """Stands for the denoiser: whatever is called, with a cache context as diffusers has."""

    def __init__(self, call: Any) -> None:
        super().__init__()
        self.call = call

    @contextlib.contextmanager
    def cache_context(self, name: str) -> Iterator[None]:
        yield


class Pipeline:
    """A sampling loop after diffusers' conventions."""

    def __init__(self, call: Any, arguments: list[tuple[Any, ...]]) -> None:
        self.transformer, self.scheduler = Denoiser(call), Scheduler()
        self.arguments = arguments

    def __call__(self) -> None:
        self.scheduler.set_timesteps(STEPS)
        for timestep, arguments in zip(self.scheduler.timesteps, self.arguments, strict=True):
            with self.transformer.cache_context("cond"):
                self.transformer.call(*arguments)
            self.scheduler.step(None, timestep, None)


def test_attached(benchmark: Any, subject: Subject) -> None:
    """An attached pipeline, against the same one that is not and whose denoiser does nothing."""
    ours = Pipeline(subject.selector, subject.arguments)
    bare = Pipeline(nothing, subject.arguments)
    with torch.no_grad(), deltapass.attach(ours):
        measured(benchmark, "attached", STEPS, ours, bare)
