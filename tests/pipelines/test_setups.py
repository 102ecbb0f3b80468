"""How pipelines are set up: orders of compiling, hooks, adapters, threads. It works, or says why.

What works gives the bits of the eager Delta-Cache in a pipeline set up the same way.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

pytest.importorskip("diffusers")
pytest.importorskip("transformers")
pytest.importorskip("accelerate")

from accelerate import cpu_offload_with_hook
from accelerate.hooks import AlignDevicesHook, add_hook_to_module
from diffusers import WanPipeline
from models.zoo import NUMPY_WARNINGS, Zoo, make_pipe
from pipeline_case import (
    OPTIONS,
    SCHEDULE,
    compiled,
    copied,
    expected,
    original,
    refusals,
    report_of,
    table_of,
)
from pipeline_oracle import oracle_in

import deltapass
from deltapass.errors import AttachError

pytestmark = [pytest.mark.keeps_compiled, pytest.mark.filterwarnings(NUMPY_WARNINGS)]

CPU = torch.device("cpu")
BROKEN = ("graph is broken into pieces", "fullgraph=True")
Setup = Callable[[nn.Module], Any]


def set_up(name: str = "sd3", setup: Setup = nn.Module.eval) -> Zoo:
    """Compiled and attached; `setup` does something to the plain denoiser first."""
    zoo = make_pipe(name)
    setup(zoo.denoiser)
    zoo.pipe.transformer = compiled(zoo.denoiser)
    deltapass.attach(zoo.pipe)
    return zoo


def check(zoo: Zoo, plain: Zoo | None = None, **arguments: Any) -> None:
    """The pipeline caches as planned, and gives the bits of `plain` under the oracle."""
    result = zoo.pipe(**{**zoo.call(), **arguments})[0]
    assert torch.equal(result, expected(plain or original(zoo.name), table_of(zoo), arguments))
    assert report_of(zoo.pipe).as_planned
    assert report_of(zoo.pipe).cached > 0


def check_refused(zoo: Zoo, plain: Zoo, *texts: str) -> None:
    """The pipeline runs in full, and warnings say so, one of them every text."""
    with pytest.warns(deltapass.RefusalWarning) as caught:
        result = zoo.run()
    told = refusals(caught)
    for text in ("nothing cached", *texts):
        assert any(text in message for message in told), text
    assert torch.equal(result, plain.run())
    assert report_of(zoo.pipe).cached == 0


# ---- compiling -----------------------------------------------------------------------------------


def test_attach_may_come_before_compile() -> None:
    zoo = make_pipe("sd3")
    deltapass.attach(zoo.pipe)
    zoo.pipe.transformer.compile(backend="deltadit", dynamic=False, options=OPTIONS)
    check(zoo)  # compiled in place
    zoo = make_pipe("sd3")
    deltapass.attach(zoo.pipe)
    zoo.pipe.transformer = compiled(zoo.pipe.transformer)
    check(zoo)
    with torch.inference_mode():
        check(zoo)


def test_blocks_compiled_before_and_after_the_whole() -> None:
    zoo = set_up("flux", lambda model: model.compile_repeated_blocks(backend="eager"))
    check(zoo)
    zoo = set_up("flux")
    zoo.pipe.transformer.compile_repeated_blocks(backend="deltadit", options=OPTIONS)
    check(zoo)


@pytest.mark.parametrize("name", ["flux", "wan"])
def test_blocks_compiled_alone_are_refused(name: str) -> None:
    """A block is not the denoiser: it has no blocks, and knows no timestep."""
    zoo = make_pipe(name)
    zoo.pipe.transformer.compile_repeated_blocks(backend="deltadit", options=OPTIONS)
    deltapass.attach(zoo.pipe)
    check_refused(zoo, original(name), "was compiled alone", "Compile the whole model")


# ---- hooks ---------------------------------------------------------------------------------------


offload = partial(cpu_offload_with_hook, execution_device=CPU)


def align(model: nn.Module) -> None:
    add_hook_to_module(model, AlignDevicesHook(execution_device=CPU, io_same_device=True))


@pytest.mark.parametrize("hook", [align, offload])
def test_hooks_on_the_compiled_denoiser(hook: Setup) -> None:
    zoo = set_up()
    hook(zoo.pipe.transformer)
    check(zoo)


def by_group(model: Any) -> None:
    model.enable_group_offload(CPU, offload_type="block_level", num_blocks_per_group=1)


def by_layer(model: Any) -> None:
    model.enable_layerwise_casting(storage_dtype=torch.bfloat16, compute_dtype=torch.float32)


@pytest.mark.parametrize(
    ("hook", "late"),
    [(align, False), (offload, False), (by_group, False), (by_group, True), (by_layer, False)],
)
def test_hooks_inside_the_compiled_denoiser_are_refused(hook: Setup, late: bool) -> None:
    """They are not for Dynamo, which breaks the graph there; one warning says what to do.

    `late`: put on what torch.compile gave, but such that they go to the modules inside.
    """
    torch._dynamo.reset()
    plain = make_pipe("sd3")
    hook(plain.denoiser)
    zoo = set_up("sd3", nn.Module.eval if late else hook)
    if late:
        hook(zoo.pipe.transformer)
    with pytest.warns(deltapass.RefusalWarning) as caught:
        result = zoo.run()
    (told,) = set(refusals(caught))
    assert "hooks, as offloading puts on" in told
    assert "SD3Transformer2DModel" in told
    assert "Compile the plain model and offload it afterwards, as a whole" in told
    assert torch.equal(result, plain.run())
    assert report_of(zoo.pipe).cached == 0
    torch._dynamo.reset()


def test_a_hooked_model_is_explained() -> None:
    plain = make_pipe("sd3")
    by_group(plain.denoiser)
    given: dict[str, Any] = {}

    def note(model: nn.Module, args: Any, kwargs: Any) -> None:
        given.update(kwargs)

    with plain.denoiser.register_forward_pre_hook(note, with_kwargs=True):
        plain.run()
    text = " ".join(str(deltapass.explain(plain.denoiser, **given)).split())
    assert "hooks, as offloading puts on 5 of the modules of SD3Transformer2DModel" in text


def test_model_offload_of_a_pipeline() -> None:
    """On a CPU it copies the weights before every call, because "cpu:0" is not called "cpu".

    So they move at every step of the trajectory, and are the same all the time.
    """
    zoo = set_up()
    zoo.pipe.enable_model_cpu_offload(device="cpu")
    weight = next(zoo.denoiser.parameters())
    places, kept = set(), []

    def place(pipe: Any, step: int, timestep: Tensor, tensors: Any) -> Any:
        places.add(weight.data_ptr())
        kept.append(weight.data)
        return tensors

    check(zoo, callback_on_step_end=place)
    assert len(places) > 1


# ---- memory and speed ----------------------------------------------------------------------------


def test_attention_slicing_and_a_sliced_vae() -> None:
    zoo, plain = set_up(), make_pipe("sd3")
    check(zoo)
    for pipe in (zoo.pipe, plain.pipe):
        pipe.enable_attention_slicing()
        pipe.vae.enable_tiling()
        pipe.vae.enable_slicing()
    check(zoo, plain, output_type="pt")


def test_fused_projections() -> None:
    zoo, plain = set_up(), make_pipe("sd3")
    check(zoo)
    for part in (zoo.pipe.transformer, plain.denoiser):
        part.fuse_qkv_projections()
    check(zoo, plain)
    zoo.pipe.transformer.unfuse_qkv_projections()
    check(zoo)


# ---- adapters ------------------------------------------------------------------------------------


def adapt(model: Any) -> None:
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(r=2, init_lora_weights=False, target_modules=["to_q", "to_v"])
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model.add_adapter(config, adapter_name="style")


def test_an_adapter_is_added_and_scaled_between_calls() -> None:
    zoo, plain = set_up(), make_pipe("sd3")
    check(zoo)
    for change in (adapt, lambda model: model.set_adapters(["style"], [0.5])):
        change(zoo.denoiser)
        change(plain.denoiser)
        check(zoo, plain)


def test_an_adapter_scaled_in_mid_run_forces_one_refresh() -> None:
    def scale(pipe: Any, step: int, timestep: Tensor, tensors: Any) -> Any:
        if step == 2:
            pipe.transformer.set_adapters(["style"], [0.25])
        return tensors

    zoo, plain = set_up("sd3", adapt), make_pipe("sd3")
    adapt(plain.denoiser)
    result = zoo.pipe(**zoo.call(), callback_on_step_end=scale)[0]
    table = list(table_of(zoo))
    table[3] = None
    assert torch.equal(result, expected(plain, table, {"callback_on_step_end": scale}))
    assert [entry.step for entry in report_of(zoo.pipe).entries if entry.forced] == [3]


# ---- two denoisers -------------------------------------------------------------------------------


def test_a_second_denoiser_begins_with_a_refresh_in_mid_trajectory() -> None:
    """Wan 2.2: from the fourth of eight steps on (timestep 750) another denoiser goes on."""
    zoo, other = make_pipe("wan"), make_pipe("wan")
    with torch.no_grad():
        for weight in other.denoiser.parameters():
            weight.mul_(1.1)
    none = {"tokenizer": None, "text_encoder": None, "vae": None}
    parts = {"transformer": zoo.denoiser, "transformer_2": other.denoiser}
    pipe = WanPipeline(**none, **parts, scheduler=zoo.pipe.scheduler, boundary_ratio=0.8)
    pipe.set_progress_bar_config(disable=True)
    table = SCHEDULE.table(8, len(zoo.blocks))
    first, second = oracle_in(zoo, table[:4]), oracle_in(other, table[4:])
    with first, second:
        wanted = pipe(**zoo.call(steps=8))[0]
    assert (first.calls, second.calls) == (8, 8)
    pipe.transformer, pipe.transformer_2 = compiled(zoo.denoiser), compiled(other.denoiser)
    with deltapass.attach(pipe) as attachment:
        assert torch.equal(pipe(**zoo.call(steps=8))[0], wanted)
    entries = attachment.last.entries if attachment.last else ()
    assert [entry.step for entry in entries if entry.reason] == [0, 0, 4, 4]
    assert all(entry.as_planned for entry in entries)


def test_a_scheduler_whose_steps_are_not_seen_is_told_of() -> None:
    zoo = set_up()
    kind: Any = type(zoo.pipe.scheduler)

    class Unseen(kind):  # type: ignore[misc]
        step = property(lambda self: partial(kind.step, self))  # goes before what lies on an object

    zoo.pipe.scheduler.__class__ = Unseen
    check_refused(zoo, original("sd3"), "never called the step() of its scheduler")


def test_a_step_that_the_user_put_on_the_scheduler_is_seen_and_stays() -> None:
    zoo = set_up()
    scheduler, kind = zoo.pipe.scheduler, type(zoo.pipe.scheduler)
    own = scheduler.step = lambda *args, **kwargs: kind.step(scheduler, *args, **kwargs)
    check(zoo)
    assert scheduler.step is own


# ---- at the same time ----------------------------------------------------------------------------


def test_two_threads_step_in_turn_through_one_compiled_denoiser() -> None:
    zoo, barrier = set_up("flux-cfg"), threading.Barrier(2, timeout=60)
    table = table_of(zoo)
    alone = [expected(original("flux-cfg"), table, prompt=prompt) for prompt in (0, 1)]

    def meet(pipe: Any, step: int, timestep: Tensor, tensors: Any) -> Any:
        barrier.wait()
        return tensors

    def work(pipe: Any, prompt: int) -> Tensor:
        return pipe(**zoo.call(prompt=prompt), callback_on_step_end=meet)[0]

    check(zoo)
    with ThreadPoolExecutor(2) as pool:
        together = list(pool.map(work, (zoo.pipe, copied(zoo)), (0, 1)))
    assert all(map(torch.equal, together, alone))
    assert report_of(zoo.pipe).as_planned


@pytest.mark.parametrize("threads", [0, 1])
def test_one_scheduler_in_two_calls_at_once_is_an_error(threads: int) -> None:
    """Neither in a callback nor in another thread; the call that was first goes on."""
    zoo, errors = set_up(), []

    def again(pipe: Any, step: int, timestep: Tensor, tensors: Any) -> Any:
        with ThreadPoolExecutor(1) as pool, pytest.raises(AttachError) as caught:
            pool.submit(zoo.run).result() if threads else zoo.run()
        errors.append(str(caught.value))
        return tensors

    result = zoo.pipe(**zoo.call(), callback_on_step_end=again)[0]
    assert torch.equal(result, expected(original("sd3"), table_of(zoo)))
    assert len(errors) == zoo.steps_default
    assert "using this scheduler. Give each thread a pipeline and a scheduler" in errors[0]
    check(zoo)
