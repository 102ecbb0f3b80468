"""Names of inputs that came through `*args`, and what else the frames of Dynamo tell."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from driving import compiled
from models import B, C, T, make, noise, randomise
from raising import raises_in_compile
from role_models import Decorated, Wrapped, moment, passing
from torch import Tensor, nn

import deltapass
from deltapass.compiler.inputs import argument_name, source_of
from deltapass.compiler.tracing import trace, uncompiled
from deltapass.errors import NumberTimestepError, RefusalWarning


def names(model: Callable[..., Any], *args: Any, **kwargs: Any) -> list[str | None]:
    graph, _ = trace(model, args, kwargs)
    found = (argument_name(source_of(n)) for n in graph.graph.find_nodes(op="placeholder"))
    return [name for name in found if name not in (None, "weight", "bias")]


def silent(forward: Callable[..., Any]) -> Callable[..., Any]:
    """A decorator that does not say what it wraps."""

    def wrapper(self: Any, *args: Any, **kwargs: Any) -> Any:
        return forward(self, *args, **kwargs)

    return wrapper


class Silent(Wrapped):
    forward = silent(Wrapped.forward)


class OtherDecorated(Wrapped):
    """Of the same decorator, whose wrappers share their code, with other names."""

    @passing
    def forward(self, sample: Tensor, prompt: Tensor, t: Tensor) -> Tensor:
        return Wrapped.forward(self, sample, prompt, t)


class Partly(Wrapped):
    """The wrapper has a name for the first argument, and keywords come too."""

    @passing
    def forward(self, latents: Tensor, parts: list[Tensor], sigma: Tensor) -> Tensor:
        return Wrapped.forward(self, latents, parts[0] + parts[1], sigma)


@torch.no_grad()
def test_names_are_those_of_what_is_wrapped() -> None:
    args, _ = Decorated().inputs(0)
    assert sorted(names(randomise(Decorated()), *args)) == ["latents", "sigma", "words"]
    assert sorted(names(randomise(OtherDecorated()), *args)) == ["prompt", "sample", "t"]


@torch.no_grad()
def test_decorated_function_has_the_names_of_what_it_wraps() -> None:
    model = randomise(Wrapped())

    @passing
    def denoise(owner: Any, latents: Tensor, words: Tensor, sigma: Tensor) -> Tensor:
        return model(latents, words, sigma)

    assert sorted(names(denoise, None, *model.inputs(0)[0])) == ["latents", "sigma", "words"]


@torch.no_grad()
def test_parts_of_an_argument_carry_its_name() -> None:
    model = randomise(Partly())
    latents, words, sigma = model.inputs(0)[0]
    report = deltapass.explain(model, latents, [words, words.clone()], sigma=sigma)
    assert report.inputs[2] == "conditioning  parts_0, parts_1"


@torch.no_grad()
def test_wrapper_that_does_not_say_what_it_wraps_leaves_numbers() -> None:
    model = randomise(Silent())
    report = deltapass.explain(model, *model.inputs(0)[0])
    # Data flow knows no names: it finds the sample, and the only number that is embedded.
    assert report.inputs == (
        "sample        0 (data flow)",
        "timestep      2 (data flow)",
        "conditioning  1",
    )


# ---- numbers -----------------------------------------------------------------------------------


class AnyTime(nn.Module):
    """Takes the timestep as a tensor or as a number."""

    def __init__(self) -> None:
        super().__init__()
        self.toy = make("adaln")

    def forward(self, hidden_states: Tensor, timestep: Any, sigma: float = 0.5) -> Tensor:
        times = torch.as_tensor(timestep, dtype=torch.float32).expand(B)
        return self.toy(sigma * hidden_states, times)


def test_number_as_timestep_is_refused_at_once_with_the_way_out() -> None:
    model = compiled(AnyTime(), strict=True)
    with torch.no_grad(), raises_in_compile(NumberTimestepError, match=r"Pass a tensor: timestep="):
        model(noise(0, B, T, C), 900)


def test_number_as_timestep_of_a_decorated_forward_is_refused() -> None:
    class Inner(AnyTime):
        forward = passing(AnyTime.forward)

    with torch.no_grad(), raises_in_compile(NumberTimestepError):
        compiled(Inner(), strict=True)(noise(0, B, T, C), 900)


@torch.no_grad()
def test_another_number_beside_a_timestep_is_no_timestep() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error", RefusalWarning)
        with deltapass.session(steps=1) as session:
            session.step(0)
            compiled(AnyTime())(noise(0, B, T, C), moment(0), 0.7)


# ---- compiled before ---------------------------------------------------------------------------


@torch.no_grad()
def test_explain_takes_what_was_compiled_for_the_model_itself() -> None:
    model = make("adaln")
    args, kwargs = model.inputs(500.0)
    once = compiled(model, cached_blocks=2)
    twice = compiled(once, cached_blocks=4)
    plain = str(deltapass.explain(model, *args, **kwargs))
    assert "nothing cached" not in plain
    for one in (once, twice, torch.compile(model.forward)):
        assert str(deltapass.explain(one, *args, **kwargs)) == plain
    assert uncompiled(twice) is model or uncompiled(twice).__self__ is model


@torch.no_grad()
def test_of_two_compilations_the_outer_one_counts() -> None:
    model = make("adaln")
    args, kwargs = model.inputs(500.0)
    outer = compiled(compiled(model, cached_blocks=2), cached_blocks=4)
    with deltapass.session(steps=3) as session:
        for step in range(3):
            session.step(step)
            outer(*args, **kwargs)
    assert len(session.entries[2].realised or ()) == 4


@torch.no_grad()
def test_model_compiled_in_place_too_is_said() -> None:
    model = make("adaln")
    args, kwargs = model.inputs(500.0)
    model.compile(backend="deltadit", options={"lowering": "eager"})
    outer = torch.compile(model, backend="deltadit", options={"lowering": "eager"})
    with deltapass.session(steps=1) as session, pytest.warns(UserWarning, match="compiled twice"):
        session.step(0)
        outer(*args, **kwargs)
