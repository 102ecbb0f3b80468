"""compiler/roles.py: what inputs are, on models that name and shape them otherwise; end to end."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from typing import Any

import pytest
import role_models
import torch
from driving import compiled
from models import noise, randomise
from raising import raises_in_compile
from role_models import SURE, UNSURE, Toy
from torch import Tensor
from torch.utils import _pytree as pytree

import deltapass
from deltapass.backend import analyse
from deltapass.compiler.capture import capture
from deltapass.compiler.conditioning import conditioning_of, roles_shown
from deltapass.compiler.tracing import trace
from deltapass.errors import OptionError, RefusalWarning
from deltapass.graph.program import Role, shown
from deltapass.options import StatedInputs
from deltapass.sessions.report import Cause

STEPS = 6
SCHEDULE = {"cached_blocks": 2, "boundary": 0.5, "interval": 2}
sure = pytest.mark.parametrize("make", SURE.values(), ids=SURE.keys())
unsure = pytest.mark.parametrize(("make", "stated"), UNSURE.values(), ids=UNSURE.keys())


def made(make: Callable[[], Toy]) -> Toy:
    model = make()
    randomise(model)
    return model


def roles(model: Toy, **stated: Any) -> dict[str, str]:
    args, kwargs = model.inputs(0)
    captured = capture(*trace(model, args, kwargs), StatedInputs(**stated))
    given = [i for i in captured.inputs if i.role not in (Role.WEIGHT, Role.DATA, Role.SIZE)]
    return {shown(i.name): i.role.value for i in given}


@torch.no_grad()
def run(model: Toy, changed: int | None = None, **options: Any) -> tuple[list[Any], Any]:
    """A trajectory; from step 3 on, one of its conditioning tensors may be another."""
    ours, outputs = compiled(model, **SCHEDULE, **options), []
    with deltapass.session(steps=STEPS) as session:
        for step in range(STEPS):
            session.step(step)
            args, kwargs = call(model, step, changed if step > 2 else None)
            outputs.append(ours(*args, **kwargs))
    return outputs, session


def call(model: Toy, step: int, changed: int | None) -> tuple[Any, Any]:
    """A call, in which the conditioning tensor of that number is another."""
    leaves, structure = pytree.tree_flatten(model.inputs(step))
    if changed is not None:
        at = fixed(model)[changed]
        leaves[at] = leaves[at] + 1 if leaves[at].is_floating_point() else 1 + 0 * leaves[at]
    return pytree.tree_unflatten(leaves, structure)


def fixed(model: Toy) -> list[int]:
    """Numbers of the tensors that are the same at every step."""
    one, two = (pytree.tree_leaves(model.inputs(step)) for step in (0, 1))
    return [at for at, (a, b) in enumerate(zip(one, two, strict=True)) if torch.equal(a, b)]


@sure
def test_roles_are_told_by_data_flow(make: Callable[[], Toy]) -> None:
    model = made(make)
    assert roles(model) == model.roles


@sure
def test_what_is_sure_is_cached_as_planned(make: Callable[[], Toy]) -> None:
    model = made(make)
    options: dict[str, Any] = {"inputs": {"timestep": "s"}} if make is SURE["two numbers"] else {}
    _, session = run(model, strict=True, **options)
    report = session.report()
    assert report.as_planned
    assert report.cached > 0


@sure
def test_every_changed_prompt_refreshes(make: Callable[[], Toy]) -> None:
    model = made(make)
    options: dict[str, Any] = {"inputs": {"timestep": "s"}} if make is SURE["two numbers"] else {}
    for number in range(len(fixed(model))):
        outputs, session = run(model, changed=number, **options)
        assert session.entries[3].cause is Cause.CONDITIONING
        args, kwargs = call(model, 3, number)
        same(outputs[3], model(*args, **kwargs))


def same(ours: Any, theirs: Any) -> None:
    pairs = zip(pytree.tree_leaves(ours), pytree.tree_leaves(theirs), strict=True)
    assert all(torch.equal(one, two) for one, two in pairs)


@unsure
def test_what_is_unsure_is_not_cached_and_the_remedy_names_the_way_to_state_it(
    make: Callable[[], Toy], stated: Mapping[str, Any]
) -> None:
    model = made(make)
    assert roles(model) == model.roles
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        outputs, session = run(model)
    texts = [str(one.message) for one in said if one.category is RefusalWarning]
    assert any("options={'inputs': {'sample': [...]}}" in text for text in texts)
    assert not any("per_step" in text for text in texts)
    assert session.report().cached == 0
    for step, output in enumerate(outputs):
        args, kwargs = model.inputs(step)
        same(output, model(*args, **kwargs))


@unsure
def test_stated_samples_are_cached_and_prompts_still_noticed(
    make: Callable[[], Toy], stated: Mapping[str, Any]
) -> None:
    model = made(make)
    _, session = run(model, inputs=stated, strict=True)
    assert session.report().as_planned
    assert session.report().cached > 0
    _, session = run(model, changed=0, inputs=stated)
    assert session.entries[3].cause is Cause.CONDITIONING


@pytest.fixture
def following(monkeypatch: pytest.MonkeyPatch) -> None:
    """Samples that follow from each other, without which a call is no step."""

    def near(seed: int, *shape: int) -> Tensor:
        far = noise(seed, *shape)
        return noise(0, *shape) + 0.05 * far if seed < STEPS else far

    monkeypatch.setattr(role_models, "noise", near)


def check_cached_by_the_timestep(model: Toy, **options: Any) -> None:
    ours = compiled(model, steps=STEPS, **options, **SCHEDULE)
    with torch.no_grad():
        for step in range(STEPS):
            args, kwargs = model.inputs(step)
            ours(*args, **kwargs)
    report = deltapass.last_report(model)
    assert report is not None
    assert report.cached > 0


@pytest.mark.parametrize("name", ["two samples", "decorated", "one number", "patches", "sides"])
def test_without_a_session_the_timestep_is_found(name: str, following: None) -> None:
    check_cached_by_the_timestep(made(SURE[name]))


def test_stated_timestep_is_read_without_a_session(following: None) -> None:
    check_cached_by_the_timestep(made(role_models.TwoNumbers), inputs={"timestep": "s"})


def test_unknown_timestep_is_said_with_the_names_to_choose_from() -> None:
    model = made(role_models.TwoNumbers)
    args, kwargs = model.inputs(0)
    with torch.no_grad(), pytest.warns(RefusalWarning, match=r"\(x, .*'timestep': '\.\.\.'"):
        compiled(model, **SCHEDULE)(*args, **kwargs)


@pytest.mark.parametrize(
    ("stated", "match"),
    [
        ({"sample": ["vidoe"]}, r"'vidoe'.*video, timestep.*did you mean 'video'\?"),
        ({"timestep": "time"}, r"'time'.*an input of the model: "),
        ({"per_step": ["pose"]}, r"'pose'.*part of the name of a data input: words"),
    ],
)
def test_names_that_are_no_inputs_raise(stated: Any, match: str) -> None:
    model = made(role_models.VideoThird)
    with raises_in_compile(OptionError, match=match):
        run(model, inputs=stated)


def test_statement_is_the_last_word() -> None:
    model = made(role_models.VideoThird)
    assert roles(model, sample=("words",), timestep="video") == {
        "words": "sample",
        "video": "timestep",
    }
    assert roles(model, sample=()) == {"timestep": "timestep"}
    assert roles(model, per_step=("wor",))["words"] == "per_step"


def test_explain_shows_every_role_and_how_it_was_found() -> None:
    model = made(role_models.TwoTimes)
    args, kwargs = model.inputs(0)
    told = deltapass.explain(model, *args, options={"inputs": {"sample": "x"}}, **kwargs)
    assert told.inputs == (
        "sample        x (stated)",
        "timestep      timestep (name)",
        "per step      timestep_r (name)",
    )
    assert all(f"input     {line}" in str(told) for line in told.inputs)
    unsure, _ = UNSURE["text added again"]
    model = made(unsure)
    args, kwargs = model.inputs(0)
    lines = roles_shown(analyse(*trace(model, args, kwargs)))
    assert lines[0].startswith("sample        none found; state it")
    assert lines[2] == "conditioning  one, two"


def test_positions_are_those_of_the_names() -> None:
    model = made(role_models.Decorated)
    args, kwargs = model.inputs(0)
    outlined = analyse(*trace(model, args, kwargs))
    names = [outlined.captured.inputs[at].name for at in conditioning_of(outlined)]
    assert names == list(conditioning_of(outlined).values()) == ["words"]
