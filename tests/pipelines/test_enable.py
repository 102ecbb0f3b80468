"""enable, disable and paused: what one call sets up, says, and puts back."""

from __future__ import annotations

import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

pytest.importorskip("diffusers")
pytest.importorskip("transformers")

from accelerate.hooks import AlignDevicesHook, add_hook_to_module, remove_hook_from_module
from diffusers import WanPipeline
from models.zoo import NUMPY_WARNINGS, Zoo, make_pipe
from pipeline_case import compiled, expected, original, realised, report_of

import deltapass
from deltapass import backend
from deltapass.errors import (
    AttachError,
    ContradictoryOptionsError,
    OptionError,
    RefusalWarning,
    ScheduleError,
    UnknownOptionError,
)
from deltapass.pipelines.attach import attachment_of
from deltapass.pipelines.compiled_by import options_of
from deltapass.schedule.presets import PRESETS, named_schedule
from deltapass.sessions.session import active_session

pytestmark = [pytest.mark.keeps_compiled, pytest.mark.filterwarnings(NUMPY_WARNINGS)]

STEPS = 12


@pytest.fixture
def zoo() -> Zoo:
    return make_pipe("pixart-dpm")


@pytest.fixture
def compiles(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """One entry for every graph that is compiled."""
    torch._dynamo.reset()  # what other tests compiled would serve here
    made: list[Any] = []
    compile_graph = backend.compile_graph

    def noting(*args: Any) -> Any:
        made.append(args)
        return compile_graph(*args)

    monkeypatch.setattr(backend, "compile_graph", noting)
    return made


def by_preset(zoo: Zoo, name: str) -> tuple[Any, ...]:
    return named_schedule(name).table(STEPS, len(zoo.blocks))


def run(zoo: Zoo) -> Tensor:
    return zoo.run(steps=STEPS)


# ---- on ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_is_followed(zoo: Zoo, name: str) -> None:
    enabled = deltapass.enable(zoo.pipe, name, quick=True)
    run(zoo)
    assert realised(enabled.last) == by_preset(zoo, name)
    assert report_of(zoo.pipe).as_planned


def test_paper_gives_the_images_of_the_oracle(zoo: Zoo) -> None:
    deltapass.enable(zoo.pipe, "paper", quick=True)
    table = by_preset(zoo, "paper")
    assert torch.equal(run(zoo), expected(original(zoo.name), table, steps=STEPS))


def test_the_default_is_balanced_and_a_schedule_may_stand_for_it(zoo: Zoo) -> None:
    enabled = deltapass.enable(zoo.pipe, quick=True)
    run(zoo)
    assert realised(enabled.last) == by_preset(zoo, "balanced")
    own = deltapass.delta_cache("middle", cached_blocks=2)
    deltapass.enable(zoo.pipe, schedule=own, quick=True)
    run(zoo)
    assert realised(enabled.last) == own.table(STEPS, len(zoo.blocks))
    attachment = attachment_of(zoo.pipe)
    assert attachment is not None and attachment.schedule is own, "which calibrating asks"


def test_a_session_around_it_follows_the_preset_too(zoo: Zoo) -> None:
    deltapass.enable(zoo.pipe, "fast", quick=True)
    with deltapass.session() as session:
        run(zoo)
    assert realised(session.report()) == by_preset(zoo, "fast")
    assert session.schedule is None
    with deltapass.session(schedule="none") as session:
        run(zoo)
    assert not session.report().cached


def test_other_presets_pauses_and_enabling_again_compile_nothing(
    zoo: Zoo, compiles: list[Any]
) -> None:
    first = deltapass.enable(zoo.pipe, "balanced", quick=True)
    run(zoo)
    assert len(compiles) == 1
    for name in ("fast", "quality", "paper"):
        assert deltapass.enable(zoo.pipe, name, quick=True) is first
        run(zoo)
        assert realised(first.last) == by_preset(zoo, name)
    with deltapass.paused(zoo.pipe):
        run(zoo)
    deltapass.disable(zoo.pipe)
    run(zoo)
    again = deltapass.enable(zoo.pipe, "fast", quick=True)
    run(zoo)
    assert realised(again.last) == by_preset(zoo, "fast")
    assert len(compiles) == 1


def test_another_lowering_compiles_anew(zoo: Zoo, compiles: list[Any]) -> None:
    deltapass.enable(zoo.pipe, lowering="eager", fuse="whole")
    run(zoo)
    deltapass.enable(zoo.pipe, quick=True)
    run(zoo)
    assert len(compiles) == 2
    deltapass.disable(zoo.pipe)
    assert zoo.pipe.transformer is zoo.denoiser


def test_paused_is_the_plain_model_bit_for_bit(zoo: Zoo) -> None:
    enabled = deltapass.enable(zoo.pipe, quick=True)
    for error in (None, KeyboardInterrupt):
        try:
            with deltapass.paused(zoo.pipe):
                assert torch.equal(run(zoo), run(original(zoo.name)))
                assert enabled.last is not None and not enabled.last.cached
                if error is not None:
                    raise error
        except KeyboardInterrupt:
            pass
        run(zoo)
        assert realised(enabled.last) == by_preset(zoo, "balanced")


def few(zoo: Zoo) -> int:
    """How many calls of a short trajectory were cached: one, or none while paused."""
    zoo.run(steps=5)
    return report_of(zoo.pipe).cached


def test_pauses_may_overlap(zoo: Zoo) -> None:
    deltapass.enable(zoo.pipe, quick=True, quiet=True)
    first, second = deltapass.paused(zoo.pipe), deltapass.paused(zoo.pipe)
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    assert few(zoo) == 0
    second.__exit__(None, None, None)
    assert few(zoo) == 1


def test_a_pause_is_of_its_thread(zoo: Zoo) -> None:
    deltapass.enable(zoo.pipe, quick=True, quiet=True)
    with deltapass.paused(zoo.pipe), ThreadPoolExecutor(1) as other:
        assert other.submit(few, zoo).result() == 1
        assert few(zoo) == 0


def test_enabling_inside_a_pause_counts_afterwards(zoo: Zoo) -> None:
    with deltapass.enable(zoo.pipe, "quality", quick=True, quiet=True) as enabled:
        with deltapass.paused(zoo.pipe):
            deltapass.enable(zoo.pipe, "fast", quick=True, quiet=True)
            zoo.run(steps=4)
            assert not report_of(zoo.pipe).cached
        zoo.run(steps=4)
        assert report_of(zoo.pipe).cached == 1, "which is what 'quality' never does"
        assert enabled.name == "fast"


def two_denoisers() -> tuple[Any, Zoo, nn.Module]:
    zoo, other = make_pipe("wan"), make_pipe("wan")
    none = {"tokenizer": None, "text_encoder": None, "vae": None}
    parts = {"transformer": zoo.denoiser, "transformer_2": other.denoiser}
    pipe = WanPipeline(**none, **parts, scheduler=zoo.pipe.scheduler, boundary_ratio=0.8)
    pipe.set_progress_bar_config(disable=True)
    return pipe, zoo, other.denoiser


def test_both_denoisers_of_a_pipeline_are_compiled_and_given_back() -> None:
    pipe, zoo, second = two_denoisers()
    with deltapass.enable(pipe, "paper", quick=True) as enabled:
        pipe(**zoo.call(steps=16))
        assert enabled.last is not None
        cached = {entry.step for entry in enabled.last.entries if entry.realised}
        assert cached >= {1, 13, 15}, "before and after the second takes over"
        assert pipe.transformer_2 is not second
    assert pipe.transformer is zoo.denoiser and pipe.transformer_2 is second


# ---- what it says --------------------------------------------------------------------------------


def test_one_line_after_the_first_image_says_what_was_measured(
    zoo: Zoo, capfd: pytest.CaptureFixture[str]
) -> None:
    enabled = deltapass.enable(zoo.pipe, "balanced", quick=True)
    assert capfd.readouterr().err == ""
    run(zoo)
    text = capfd.readouterr().err
    count = sum(row is not None for row in by_preset(zoo, "balanced"))
    found = re.fullmatch(
        rf"deltapass balanced: {STEPS} steps, {count} of them cached, "
        r"(?:saved|cost) ([\d.]+) s (?:of|on top of) ([\d.]+) s \(([\d.]+)x\), measured: "
        r"([\d.]+) ms a step in full, ([\d.]+) ms cached\. "
        r"deltapass\.last_report\(pipe\) shows every step\n",
        text,
    )
    assert found, text
    times = enabled.times
    assert times is not None and times.speedup is not None
    assert f"{times.speedup:.2f}" == found[3]
    run(zoo)
    assert capfd.readouterr().err == "", "only the first"
    deltapass.enable(zoo.pipe, "fast", quick=True)
    with deltapass.paused(zoo.pipe):
        run(zoo)
    assert capfd.readouterr().err == "", "not what ran in full on purpose"
    run(zoo)
    assert capfd.readouterr().err.startswith("deltapass fast: ")


def test_few_steps_are_not_measured_and_nothing_cached_is_said(
    zoo: Zoo, capfd: pytest.CaptureFixture[str]
) -> None:
    deltapass.enable(zoo.pipe, quick=True)
    zoo.run(steps=5)
    assert "5 steps, 1 of them cached; too few to measure" in capfd.readouterr().err
    deltapass.enable(zoo.pipe, "balanced", quick=True)
    with pytest.warns(RefusalWarning, match="caches none of 3 steps"):
        zoo.run(steps=3)
    text = capfd.readouterr().err
    assert "3 steps, 0 of them cached: the schedule plans none in this trajectory" in text


def test_quiet_prints_nothing(zoo: Zoo, capfd: pytest.CaptureFixture[str]) -> None:
    enabled = deltapass.enable(zoo.pipe, quick=True, quiet=True)
    zoo.run(steps=5)
    assert enabled.times is not None
    assert capfd.readouterr() == ("", "")
    deltapass.enable(zoo.pipe, quick=True)
    zoo.run(steps=5)
    assert capfd.readouterr().err.startswith("deltapass balanced: ")
    deltapass.enable(zoo.pipe, quick=True, quiet=True)
    zoo.run(steps=5)
    assert capfd.readouterr() == ("", "")


def test_a_session_with_its_own_schedule_is_not_the_presets_gain(
    zoo: Zoo, capfd: pytest.CaptureFixture[str]
) -> None:
    enabled = deltapass.enable(zoo.pipe, quick=True)
    with deltapass.session(schedule="none"):
        zoo.run(steps=5)
    with deltapass.session() as session:
        session.observer = SimpleNamespace(met=lambda *_: None, weights=lambda *_: None)
        zoo.run(steps=5)
    assert capfd.readouterr().err == "" and enabled.times is None
    zoo.run(steps=5)
    assert capfd.readouterr().err.startswith("deltapass balanced: 5 steps, 1 of them cached")


# ---- as a context manager ------------------------------------------------------------------------


def test_blocks_nest_and_give_back_what_was_before(zoo: Zoo) -> None:
    with deltapass.enable(zoo.pipe, "quality", quick=True) as outer:
        compiled_first = zoo.pipe.transformer
        with deltapass.enable(zoo.pipe, "fast", quick=True) as inner:
            assert inner.name == "fast"
        assert outer.name == "quality" and zoo.pipe.transformer is compiled_first
        with deltapass.enable(zoo.pipe, lowering="eager", fuse="whole"):
            assert zoo.pipe.transformer is not compiled_first
            assert options_of(zoo.pipe.transformer)["fuse"] == "whole"
        assert "fuse" not in options_of(zoo.pipe.transformer)
        zoo.run(steps=STEPS)
        assert realised(outer.last) == by_preset(zoo, "quality")
    assert zoo.pipe.transformer is zoo.denoiser
    deltapass.enable(zoo.pipe, "fast", quick=True)


def test_a_block_may_disable_inside(zoo: Zoo) -> None:
    with deltapass.enable(zoo.pipe, quick=True):
        deltapass.disable(zoo.pipe)
    with deltapass.enable(zoo.pipe, quick=True):
        deltapass.disable(zoo.pipe)
        again = deltapass.enable(zoo.pipe, "fast", quick=True)
    assert again.name == "fast" and zoo.pipe.transformer is not zoo.denoiser


def test_leaving_a_block_masks_no_error(zoo: Zoo) -> None:
    hook = AlignDevicesHook(execution_device="cpu")
    with pytest.raises(KeyError) as told, deltapass.enable(zoo.pipe, quick=True):
        add_hook_to_module(zoo.pipe.transformer, hook)
        raise KeyError("the user's")
    assert "has hooks" in told.value.__notes__[0]
    block = deltapass.enable(zoo.pipe, "fast", quick=True)
    with block:
        pass
    assert block.name == "balanced", "which needs nothing to be taken away"


# ---- off -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("error", [None, RuntimeError, KeyboardInterrupt])
def test_disable_puts_everything_back(error: type[BaseException] | None) -> None:
    def stop(*_: Any) -> Any:
        if error is not None:
            raise error
        return {}

    zoo = make_pipe("flux-cfg")
    parts = (zoo.pipe, zoo.denoiser, zoo.pipe.scheduler)
    kinds, own, config = [type(p) for p in parts], set(vars(zoo.denoiser)), dict(zoo.pipe.config)
    wanted = zoo.run()
    names = set(vars(zoo.pipe))
    deltapass.enable(zoo.pipe, quick=True)
    assert zoo.pipe.transformer is not zoo.denoiser
    try:
        zoo.pipe(**zoo.call(), callback_on_step_end=stop)
    except (RuntimeError, KeyboardInterrupt):
        assert error is not None
    deltapass.disable(zoo.pipe)
    assert zoo.pipe.transformer is zoo.denoiser
    assert [type(part) for part in parts] == kinds
    assert set(vars(zoo.denoiser)) - {"_diffusers_hook"} == own
    assert set(vars(zoo.pipe)) == names
    assert dict(zoo.pipe.config) == config
    assert active_session() is None
    assert torch.equal(zoo.run(), wanted)


def test_a_denoiser_exchanged_meanwhile_stays(zoo: Zoo) -> None:
    other = make_pipe(zoo.name).denoiser
    deltapass.enable(zoo.pipe, quick=True)
    zoo.pipe.transformer = other
    deltapass.disable(zoo.pipe)
    assert zoo.pipe.transformer is other


def test_what_the_user_compiled_stays_compiled(zoo: Zoo) -> None:
    zoo.pipe.transformer = mine = compiled(zoo.denoiser)
    with deltapass.enable(zoo.pipe, "fast", quick=True) as enabled:
        run(zoo)
        assert realised(enabled.last) == by_preset(zoo, "fast")
    assert zoo.pipe.transformer is mine


def test_options_beside_what_the_user_compiled_are_refused(zoo: Zoo) -> None:
    zoo.pipe.transformer = mine = compiled(zoo.denoiser)
    with pytest.raises(AttachError, match=r"'deltadit' already, and not with \{'strict': True\}"):
        deltapass.enable(zoo.pipe, quick=True, strict=True)
    assert zoo.pipe.transformer is mine
    deltapass.enable(zoo.pipe)


# ---- errors --------------------------------------------------------------------------------------


@pytest.fixture
def refused(zoo: Zoo) -> Iterator[Zoo]:
    """Nothing is left behind by what is refused."""
    kind = type(zoo.pipe)
    yield zoo
    assert type(zoo.pipe) is kind and zoo.pipe.transformer is zoo.denoiser


@pytest.mark.parametrize(
    ("given", "error", "text"),
    [
        ({"preset": "balance"}, OptionError, "one of quality.*did you mean 'balanced'"),
        ({"preset": 2}, OptionError, "'preset' is 2"),
        ({"preset": "delta-dit"}, OptionError, "one of quality"),
        ({"preset": "fast", "schedule": "none"}, ContradictoryOptionsError, "'preset' and 'sch"),
        ({"schedule": "nonesuch"}, ScheduleError, "unknown schedule 'nonesuch'"),
        ({"schedule": 3}, OptionError, "'schedule' is 3"),
        ({"interval": 3}, UnknownOptionError, "unknown option 'interval'.*lowering"),
        ({"quick": True, "lowering": "onnx"}, ContradictoryOptionsError, "'quick' and 'lowering'"),
        ({"fuse": "half"}, OptionError, "'fuse' is 'half'"),
    ],
)
def test_bad_values_are_refused(
    refused: Zoo, given: dict[str, Any], error: type[Exception], text: str
) -> None:
    with pytest.raises(error, match=text):
        deltapass.enable(refused.pipe, **given)


def test_other_options_that_cannot_be_compiled_leave_all_as_it_was(
    zoo: Zoo, monkeypatch: pytest.MonkeyPatch
) -> None:
    enabled = deltapass.enable(zoo.pipe, "fast", quick=True, quiet=True)
    compile_model: Any = torch.compile

    def failing(model: Any, *, options: dict[str, Any], **others: Any) -> Any:
        if options.get("strict"):
            raise MemoryError
        return compile_model(model, options=options, **others)

    monkeypatch.setattr(torch, "compile", failing)
    with pytest.raises(MemoryError):
        deltapass.enable(zoo.pipe, quick=True, strict=True)
    zoo.run(steps=4)
    assert report_of(zoo.pipe).cached == 1
    zoo.pipe.transformer = theirs = compile_model(zoo.denoiser, backend="eager")
    with pytest.raises(AttachError, match="backend 'eager' already"):
        deltapass.enable(zoo.pipe, quick=True, strict=True)
    assert enabled.name == "fast" and zoo.pipe.transformer is theirs
    deltapass.disable(zoo.pipe)


def test_what_is_no_pipeline_is_refused(zoo: Zoo) -> None:
    for thing in (zoo.denoiser, None, SimpleNamespace(decoder=nn.Linear(1, 1))):
        with pytest.raises(AttachError):
            deltapass.enable(thing)


def test_not_enabled_attached_and_enabled_are_told_apart(zoo: Zoo) -> None:
    for undo in (deltapass.disable, lambda pipe: deltapass.paused(pipe).__enter__()):
        with pytest.raises(AttachError, match=r"is not enabled. Call deltapass.enable\(pipe\)"):
            undo(zoo.pipe)
    with deltapass.attach(zoo.pipe):
        with pytest.raises(AttachError, match=r"attached already. Call detach\(pipe\) first"):
            deltapass.enable(zoo.pipe)
        with pytest.raises(AttachError, match="is not enabled"):
            deltapass.disable(zoo.pipe)
    deltapass.enable(zoo.pipe, quick=True)
    with pytest.raises(AttachError, match=r"is enabled. Call disable\(pipe\) instead"):
        deltapass.detach(zoo.pipe)
    deltapass.disable(zoo.pipe)


def test_another_backend_is_refused(zoo: Zoo) -> None:
    zoo.pipe.transformer = theirs = torch.compile(zoo.denoiser, backend="eager")
    with pytest.raises(AttachError, match=r"backend 'eager' already. .*transformer\._orig_mod"):
        deltapass.enable(zoo.pipe)
    assert zoo.pipe.transformer is theirs


def test_offloading_goes_around_it(zoo: Zoo) -> None:
    hook = AlignDevicesHook(execution_device="cpu")
    deltapass.enable(zoo.pipe, quick=True)
    add_hook_to_module(zoo.pipe.transformer, hook)
    with deltapass.paused(zoo.pipe):
        run(zoo)  # a warning that the hook stands in the way would be an error
    with pytest.raises(AttachError, match=r"disabling would lose them. Call pipe\.remove_all_hook"):
        deltapass.disable(zoo.pipe)
    remove_hook_from_module(zoo.pipe.transformer)
    deltapass.disable(zoo.pipe)
    assert torch.equal(run(zoo), run(original(zoo.name)))
    other = make_pipe(zoo.name)
    add_hook_to_module(other.denoiser, AlignDevicesHook(execution_device="cpu"))
    with pytest.raises(AttachError, match="no graph can be made of it then"):
        deltapass.enable(other.pipe)
