"""attach and detach: what they touch, what they put back, and whose session a call is in."""

from __future__ import annotations

import copy
import inspect
import json
import pickle
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

pytest.importorskip("diffusers")
pytest.importorskip("transformers")

from diffusers import DDIMScheduler, SanaPipeline
from models.zoo import NUMPY_WARNINGS, Zoo, make_pipe
from pipeline_case import (
    check_attached,
    compiled,
    compiled_pipe,
    expected,
    original,
    realised,
    report_of,
    table_of,
)

import deltapass
from deltapass.errors import AttachError, StateError
from deltapass.schedule.rules import Span
from deltapass.sessions.session import active_session

pytestmark = [pytest.mark.keeps_compiled, pytest.mark.filterwarnings(NUMPY_WARNINGS)]

OTHER = deltapass.delta_cache("middle", cached_blocks=2)


@pytest.fixture
def zoo() -> Zoo:
    """Compiled, and not attached."""
    return compiled_pipe()


def by_other_schedule(zoo: Zoo) -> Tensor:
    """What a call must give under `OTHER`."""
    return expected(original(zoo.name), table_of(zoo, OTHER))


def fail(*known: Any) -> None:
    raise KeyboardInterrupt


# ---- what is touched -----------------------------------------------------------------------------


def test_no_class_is_touched() -> None:
    zoo, other = compiled_pipe("flux-cfg"), make_pipe("flux-cfg")
    zoo.run(steps=1)  # Dynamo patches nn.Module when it compiles something first
    parts = (zoo.pipe, zoo.denoiser, zoo.pipe.scheduler)
    bases = {base for part in parts for base in type(part).__mro__}
    before = {base: dict(vars(base)) for base in bases}
    during: list[bool] = []

    def look(pipe: Any, step: int, timestep: Tensor, tensors: Any) -> Any:
        during.append(all(vars(base) == before[base] for base in bases))
        return tensors

    with deltapass.attach(zoo.pipe) as attachment:
        zoo.pipe(**zoo.call(), callback_on_step_end=look)
        assert during == [True] * zoo.steps_default
        last = attachment.last
        assert torch.equal(other.run(), original("flux-cfg").run()), "another instance runs as ever"
        assert attachment.last is last
    assert all(vars(base) == before[base] for base in bases)


def test_the_scheduler_is_of_its_own_class_all_the_time(zoo: Zoo) -> None:
    scheduler = zoo.pipe.scheduler
    kind, before = type(scheduler), dict(vars(scheduler))
    asked = [inspect.signature(method) for method in (scheduler.step, scheduler.set_timesteps)]
    seen: list[Any] = []

    def look(*known: Any) -> None:
        assert type(scheduler) is kind
        now = [inspect.signature(method) for method in (scheduler.step, scheduler.set_timesteps)]
        assert now == asked, "by which pipelines decide what to hand over"
        for made in (copy.copy, copy.deepcopy, lambda one: pickle.loads(pickle.dumps(one))):
            other = made(scheduler)
            assert type(other) is kind
            assert vars(other).keys() <= before.keys() | vars(kind()).keys()
            other.set_timesteps(3)
        seen.append(len(scheduler.timesteps))

    deltapass.attach(zoo.pipe)
    zoo.pipe(**zoo.call(), callback=look)
    assert seen == [zoo.steps_default] * zoo.steps_default, "a copy's steps are its own"
    assert report_of(zoo.pipe).as_planned
    assert vars(scheduler).keys() == before.keys()


def test_what_is_put_on_a_running_scheduler_stays(zoo: Zoo) -> None:
    scheduler, steps = zoo.pipe.scheduler, []

    def cover(*known: Any) -> None:
        if steps:
            return
        covered = scheduler.step

        def step(*args: Any, **kwargs: Any) -> Any:
            steps.append(args)
            return covered(*args, **kwargs)

        scheduler.step = step

    deltapass.attach(zoo.pipe)
    result = zoo.pipe(**zoo.call(), callback=cover)[0]
    assert torch.equal(result, expected(original(zoo.name), table_of(zoo)))
    assert "step" in vars(scheduler)
    del scheduler.step
    check_attached(zoo)


def test_the_pipeline_passes_for_one_of_its_own_class(zoo: Zoo) -> None:
    kind, other = type(zoo.pipe), make_pipe(zoo.name).pipe
    deltapass.attach(zoo.pipe)
    made = type(zoo.pipe)
    assert zoo.pipe.__class__ is kind
    assert made == kind and kind == made and len({made, kind}) == 1
    assert made in (str, kind) and {kind: 1}[made] == 1 and made != SanaPipeline
    assert isinstance(other, made) and issubclass(kind, made) and not isinstance(1, made)
    assert inspect.signature(made) == inspect.signature(kind)
    again = made(**zoo.pipe.components)
    assert type(again) is kind
    with deltapass.attach(again):
        assert made in [type(again)], "of two attached pipelines too"
        deltapass.detach(zoo.pipe)
        assert type(zoo.pipe) is kind and type(again) is not kind


def test_code_that_exchanges_the_class_itself_still_can(zoo: Zoo) -> None:
    kind: Any = type(zoo.pipe)

    class Custom(kind):  # type: ignore[misc]
        pass

    deltapass.attach(zoo.pipe)
    zoo.pipe.__class__ = Custom
    assert type(zoo.pipe) is Custom


def test_the_pipeline_goes_by_its_own_name(zoo: Zoo) -> None:
    kind, shown = type(zoo.pipe), repr(zoo.pipe)
    deltapass.attach(zoo.pipe)
    attached = type(zoo.pipe)
    assert isinstance(zoo.pipe, kind)
    names = ("__name__", "__qualname__", "__module__", "__doc__")
    assert [getattr(attached, name) for name in names] == [getattr(kind, name) for name in names]
    assert repr(zoo.pipe) == shown
    assert zoo.pipe.components.keys() == original(zoo.name).pipe.components.keys()


@pytest.mark.parametrize("error", [None, RuntimeError, KeyboardInterrupt])
def test_detach_puts_everything_back(error: type[BaseException] | None) -> None:
    def stop(pipe: Any, step: int, timestep: Tensor, tensors: Any) -> Any:
        if error is not None:
            raise error
        return tensors

    zoo = compiled_pipe("flux-cfg")
    parts = (zoo.pipe, zoo.denoiser, zoo.pipe.scheduler)
    kinds, own = [type(part) for part in parts], set(vars(zoo.denoiser))
    deltapass.attach(zoo.pipe)
    assert "cache_context" in vars(zoo.denoiser)
    with pytest.raises(error) if error else nullcontext():
        zoo.pipe(**zoo.call(), callback_on_step_end=stop)
    assert type(zoo.pipe.scheduler) is kinds[2]
    assert active_session() is None
    deltapass.detach(zoo.pipe)
    assert [type(part) for part in parts] == kinds
    assert set(vars(zoo.denoiser)) - {"_diffusers_hook"} == own, "diffusers adds the hook itself"
    assert not [name for part in parts for name in vars(part) if "deltapass" in name]


def test_a_context_manager_detaches_after_an_error_too(zoo: Zoo) -> None:
    kind = type(zoo.pipe)
    with pytest.raises(KeyboardInterrupt), deltapass.attach(zoo.pipe):
        check_attached(zoo)
        fail()
    assert type(zoo.pipe) is kind


# ---- errors --------------------------------------------------------------------------------------


def test_attaching_or_detaching_twice_is_an_error(zoo: Zoo) -> None:
    for _ in range(2):
        with pytest.raises(AttachError, match=r"not attached.*attach\(pipe\) first"):
            deltapass.detach(zoo.pipe)
        deltapass.attach(zoo.pipe)
        with pytest.raises(AttachError, match=r"PixArtAlphaPipeline is attached already.*detach"):
            deltapass.attach(zoo.pipe)
        check_attached(zoo)
        deltapass.detach(zoo.pipe)


def test_a_pipeline_without_a_denoiser_is_an_error(zoo: Zoo) -> None:
    pipe = SimpleNamespace(decoder=nn.Linear(1, 1), scheduler=DDIMScheduler())
    with pytest.raises(AttachError, match="no denoiser; it has decoder, scheduler"):
        deltapass.attach(pipe)
    zoo.pipe.transformer = None
    with pytest.raises(AttachError, match="no denoiser"):
        deltapass.attach(zoo.pipe)


@pytest.mark.parametrize(
    ("given", "text"),
    [
        (None, "attach was given None, which is no pipeline. Give a pipeline object"),
        ("a/folder", "attach was given 'a/folder', which is no pipeline"),
        (SanaPipeline, "attach was given the class SanaPipeline, which is no pipeline"),
        (
            nn.Linear(1, 1),
            r"given a model, Linear. Attach the pipeline.*session\(steps=",
        ),
        (torch.compile(nn.Linear(1, 1)), "attach was given a model, Linear"),
    ],
)
def test_what_is_no_pipeline_is_an_error(given: Any, text: str) -> None:
    with pytest.raises(AttachError, match=text):
        deltapass.attach(given)


@pytest.mark.parametrize("scheduler", [{}, {"scheduler": None}, {"scheduler": object()}])
def test_a_pipeline_without_a_scheduler_is_an_error(scheduler: dict[str, Any]) -> None:
    pipe = SimpleNamespace(transformer=nn.Linear(1, 1), **scheduler)
    with pytest.raises(AttachError, match=r"no scheduler with set_timesteps.*session\(steps="):
        deltapass.attach(pipe)
    assert type(pipe) is SimpleNamespace


def compile_with_eager(pipe: Any) -> None:
    pipe.transformer = torch.compile(pipe.transformer, backend="eager")


@pytest.mark.parametrize(
    ("setup", "text"),
    [
        (lambda pipe: None, r"not compiled as a whole.*torch\.compile\(pipe\.transformer, back"),
        (compile_with_eager, "backend 'eager', not with 'deltadit'"),
        (lambda pipe: pipe.transformer.compile(backend="eager"), "backend 'eager', not with 'de"),
    ],
)
def test_without_a_compiled_model_a_warning_says_so_once(setup: Any, text: str) -> None:
    zoo = make_pipe("pixart-dpm")
    setup(zoo.pipe)
    deltapass.attach(zoo.pipe)
    with pytest.warns(deltapass.RefusalWarning, match=text) as seen:
        assert torch.equal(zoo.run(), original(zoo.name).run())
    told = [one for one in seen if one.category is deltapass.RefusalWarning]
    assert [Path(one.filename).parent.name for one in told] == ["zoo"], "where it is called"
    zoo.run()  # any further warning would be an error
    zoo.pipe.transformer = compiled(make_pipe(zoo.name).denoiser)
    check_attached(zoo)


# ---- sessions ------------------------------------------------------------------------------------


def test_last_report_is_of_the_last_call(zoo: Zoo) -> None:
    attachment = deltapass.attach(zoo.pipe)
    assert attachment.last is None is deltapass.last_report(zoo.pipe)
    check_attached(zoo)
    first = attachment.last
    assert deltapass.last_report(zoo.pipe) is first
    with pytest.raises(KeyboardInterrupt):
        zoo.pipe(**zoo.call(), callback=fail)
    assert attachment.last is not first
    assert len(realised(attachment.last)) == 1


def test_a_schedule_may_be_given_to_attach(zoo: Zoo) -> None:
    attachment = deltapass.attach(zoo.pipe, schedule=OTHER)
    assert torch.equal(zoo.run(), by_other_schedule(zoo))
    assert set(realised(attachment.last)) == {None, Span(1, 3)}
    attachment.schedule = None
    check_attached(zoo)


@pytest.mark.parametrize("steps", [None, 6])
def test_a_session_of_the_user_is_used_and_kept_open(zoo: Zoo, steps: int | None) -> None:
    deltapass.attach(zoo.pipe)
    with deltapass.session(steps=steps, schedule=OTHER) as session:
        for number in range(2):
            assert torch.equal(zoo.run(), by_other_schedule(zoo))
            assert len(session.entries) == 6 * (number + 1)
            assert active_session() is session
        assert realised(deltapass.last_report(zoo.pipe)) == realised(session.report())[6:]
    assert [entry.trajectory for entry in session.entries] == [0] * 6 + [1] * 6
    assert session.report().as_planned
    check_attached(zoo)


def test_a_session_of_another_length_is_an_error(zoo: Zoo) -> None:
    deltapass.attach(zoo.pipe)
    told = pytest.raises(StateError, match=r"session of 7 steps.*takes 6.*steps=None")
    with told, deltapass.session(steps=7):
        zoo.run()
    assert active_session() is None
    check_attached(zoo)


# ---- components that change, and pipelines that share --------------------------------------------


def test_scheduler_and_denoiser_may_be_exchanged_while_attached(zoo: Zoo) -> None:
    deltapass.attach(zoo.pipe)
    check_attached(zoo)
    zoo.pipe.scheduler = type(zoo.pipe.scheduler).from_config(zoo.pipe.scheduler.config)
    check_attached(zoo)
    other = make_pipe(zoo.name).denoiser
    zoo.pipe.transformer = compiled(other)
    check_attached(zoo, steps=7)
    deltapass.detach(zoo.pipe)
    assert "cache_context" not in {**vars(zoo.denoiser), **vars(other)}


def test_two_pipelines_share_one_denoiser() -> None:
    first, second = compiled_pipe("flux-cfg"), make_pipe("flux-cfg")
    second.pipe.transformer = first.pipe.transformer
    deltapass.attach(first.pipe)
    deltapass.attach(second.pipe)
    for zoo in (first, second, first):
        check_attached(zoo)
    deltapass.detach(first.pipe)
    assert "cache_context" in vars(first.denoiser)
    check_attached(second)
    assert "uncond" in {entry.branch_label for entry in report_of(second.pipe).entries}
    deltapass.detach(second.pipe)
    assert "cache_context" not in vars(first.denoiser)


def unpickled(one: Any) -> Any:
    """As a worker process gets it."""
    return pickle.loads(pickle.dumps(one))


@pytest.mark.parametrize("name", ["pixart-dpm", "flux-cfg"])
@pytest.mark.parametrize("made", [copy.copy, copy.deepcopy, unpickled])
def test_a_copy_is_a_plain_pipeline_that_can_be_attached(name: str, made: Any) -> None:
    zoo = compiled_pipe(name)
    kind, own = type(zoo.pipe), pickle.dumps(zoo.pipe)
    deltapass.attach(zoo.pipe)
    other = made(zoo.pipe)
    assert type(other) is kind
    assert b"deltapass" not in pickle.dumps(other) or b"deltapass" in own
    with pytest.raises(AttachError, match="not attached"):
        deltapass.detach(other)
    if made is not copy.copy:
        inner = other.transformer._orig_mod
        assert inner is not zoo.denoiser
        assert name != "flux-cfg" or inner.cache_context.__self__ is inner
    other.scheduler = copy.deepcopy(zoo.pipe.scheduler)
    with deltapass.attach(other) as attachment:
        result = other(**zoo.call())[0]
        assert torch.equal(result, expected(original(zoo.name), table_of(zoo)))
        assert attachment.last is not None and attachment.last.as_planned
    assert deltapass.last_report(zoo.pipe) is None
    check_attached(zoo)


def test_a_report_of_what_is_not_attached_is_an_error(zoo: Zoo) -> None:
    for given in (zoo.pipe, None, "pipe"):
        with pytest.raises(AttachError, match=r"neither an attached pipeline nor a mo.*attach\("):
            deltapass.last_report(given)
    with deltapass.attach(zoo.pipe):
        check_attached(zoo)
        assert deltapass.last_report(zoo.pipe) is not None
    with pytest.raises(AttachError, match="this PixArtAlphaPipeline is neither"):
        deltapass.last_report(zoo.pipe)
    assert deltapass.last_report(make_pipe(zoo.name).denoiser) is None


def test_a_pipeline_made_from_an_attached_one_is_not_attached() -> None:
    zoo = compiled_pipe("sana")
    deltapass.attach(zoo.pipe)
    other = SanaPipeline.from_pipe(zoo.pipe)
    assert type(other) is SanaPipeline
    with deltapass.attach(other):
        check_attached(zoo)
    check_attached(zoo)


def test_an_attached_pipeline_is_saved_under_its_own_class(tmp_path: Path) -> None:
    zoo = compiled_pipe("sana")
    deltapass.attach(zoo.pipe)
    zoo.pipe.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "model_index.json").read_text())["_class_name"] == "SanaPipeline"
    missing = {"vae": None, "tokenizer": None, "text_encoder": None}
    loaded = SanaPipeline.from_pretrained(tmp_path, **missing)
    assert type(loaded) is SanaPipeline
    loaded.set_progress_bar_config(disable=True)
    assert torch.equal(loaded(**zoo.call())[0], original("sana").run())
