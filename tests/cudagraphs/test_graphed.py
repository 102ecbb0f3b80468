"""Variants as graphs give the bits of launched ones, on a device that spoils what is misused."""

from __future__ import annotations

import gc
import threading
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from driving import compiled, in_session
from graph_recorder import Recorder
from models import make

import deltapass
from deltapass.cudagraphs import graphed, slots
from deltapass.errors import LaunchedWarning

STEPS = 8
MODE = {"mode": "reduce-overhead"}


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> Recorder:
    recorder = Recorder()
    monkeypatch.setattr(graphed, "DEVICES", {"cpu": lambda place: recorder})
    return recorder


def calls_of(toy: Any, seed: int = 0, steps: int = STEPS) -> list[Any]:
    """One prompt, its tensors the same objects at every step, and a sample for each."""
    args, kwargs = toy.inputs(500.0, 10 * seed)
    generator = torch.Generator().manual_seed(seed)
    kwargs = {name: torch.randn(given.shape, generator=generator) for name, given in kwargs.items()}
    made = []
    for step in range(steps):
        sample = torch.randn(args[0].shape, generator=generator)
        timestep = torch.full_like(args[1], 900.0 - 100 * step)
        made.append(((sample, timestep, *args[2:]), kwargs))
    return made


def both(name: str = "cross_attention", **options: Any) -> tuple[Any, Any, Any]:
    """A toy, compiled with graphs and launched."""
    toy = make(name)
    launched = compiled(toy, **options)
    torch._dynamo.reset()
    return toy, compiled(toy, **options, **MODE), launched


def same(one: list[Any], other: list[Any]) -> bool:
    return all(map(torch.equal, one, other))


WAYS: dict[str, dict[str, Any]] = {
    "paper": {"cached_blocks": 4, "interval": 3},
    "default": {"preset": "balanced"},
    "linear": {"predictor": "linear", "cached_blocks": 4},
    "chebyshev": {"predictor": "chebyshev", "cached_blocks": 4},
    "features": {"schedule": "faster-diffusion", "cached_blocks": 4},
    "whole": {"fuse": "whole", "cached_blocks": 4, "steps": STEPS},
}


@pytest.mark.parametrize("inference", [False, True])
@pytest.mark.parametrize("way", WAYS)
def test_a_trajectory_has_the_bits_of_the_launched_one(
    device: Recorder, way: str, inference: bool
) -> None:
    toy, model, launched = both(**WAYS[way])
    calls = calls_of(toy)
    with torch.inference_mode(inference):
        results, report = in_session(model, calls)
        wanted, launched_report = in_session(launched, calls)
        assert same(results, wanted)
        assert report.cached == launched_report.cached > 0
        assert device.replays == STEPS
        assert device.captures <= STEPS - report.cached + 1 + (report.cached > 1)
        again, _ = in_session(model, calls)
    assert same(again, wanted)
    with torch.inference_mode(not inference), torch.no_grad():
        assert same(in_session(model, calls)[0], wanted)


def in_turn(model: Any, many: list[list[Any]]) -> list[list[Any]]:
    """Several requests, step by step in turn."""
    sessions = [deltapass.session(steps=STEPS) for _ in many]
    results: list[list[Any]] = [[] for _ in many]
    with torch.no_grad():
        for step in range(STEPS):
            for session, calls, made in zip(sessions, many, results, strict=True):
                with session.at(step):
                    args, kwargs = calls[step]
                    made.append(model(*args, **kwargs))
    return results


def check_requests_in_turn(toy: Any, model: Any, launched: Any) -> bool:
    """Whether requests with prompts of their own agree, whose steps read several deltas."""
    many = [calls_of(toy, seed) for seed in range(3)]
    wanted = [in_session(launched, calls)[0] for calls in many]
    return all(map(same, in_turn(model, many), wanted))


LINEAR = {"predictor": "linear", "cached_blocks": 4}


def test_requests_in_turn_keep_their_prompts_and_deltas(device: Recorder) -> None:
    assert check_requests_in_turn(*both(**LINEAR))
    assert device.replays == 3 * STEPS


def never(self: Any, given: Any, *, always: bool) -> None:
    pass


SABOTAGE: dict[str, Callable[[pytest.MonkeyPatch], None]] = {
    "inputs are not copied in": lambda patch: patch.setattr(slots.Slot, "fill", never),
    "conditioning is never copied again": lambda patch: patch.setattr(
        slots.Held, "is_still", lambda self, given: True
    ),
    "outputs are not copied out": lambda patch: patch.setattr(
        graphed, "copy_out", lambda value: value
    ),
    "the weights are not looked at": lambda patch: patch.setattr(
        graphed.Graphed, "_graph_for", without_weights
    ),
}


def without_weights(self: Any, key: Any, variant: Any, arguments: Any) -> Any:
    return self._graphs.get((key, b"")) or self._capture((key, b""), variant, arguments)


def moved_in_mid_run(toy: Any, model: Any, *, change: bool) -> list[Any]:
    calls, results, kept = calls_of(toy), [], []
    with torch.no_grad(), deltapass.session(steps=STEPS) as session:
        for step, (args, kwargs) in enumerate(calls):
            session.step(step)
            if step == STEPS // 2:
                for weight in toy.parameters():
                    kept.append(weight.data)
                    weight.data = weight.data.clone()
                    if change:
                        weight.mul_(1.5)
                for old in kept:
                    old.fill_(float("nan"))  # whoever reads there now shows it
            results.append(model(*args, **kwargs))
    return results


@pytest.mark.parametrize("fault", SABOTAGE)
def test_the_stand_in_notices(
    device: Recorder, fault: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each fault that a GPU would punish makes other images here."""
    SABOTAGE[fault](monkeypatch)
    toy, model, launched = both(**LINEAR)
    agree = check_requests_in_turn(toy, model, launched)
    twin = make("cross_attention")
    twin.load_state_dict(toy.state_dict())
    moved = moved_in_mid_run(toy, model, change=False)
    assert not (
        agree and same(moved, moved_in_mid_run(twin, compiled(twin, **LINEAR), change=False))
    )


@pytest.mark.parametrize("change", [False, True])
def test_moved_weights_are_captured_anew(device: Recorder, change: bool) -> None:
    toy, model, _ = both(**LINEAR)
    twin = make("cross_attention")
    twin.load_state_dict(toy.state_dict())
    results = moved_in_mid_run(toy, model, change=change)
    assert same(results, moved_in_mid_run(twin, compiled(twin, **LINEAR), change=change))
    assert all(result.isfinite().all() for result in results)


def test_changed_weights_are_not_captured_anew(device: Recorder) -> None:
    toy, model, launched = both(**LINEAR)
    calls = calls_of(toy)
    in_session(model, calls)
    captures = device.captures
    with torch.no_grad():
        for weight in toy.parameters():
            weight.mul_(1.25)
    assert same(in_session(model, calls)[0], in_session(launched, calls)[0])
    assert device.captures == captures


def test_inputs_written_in_place_are_read_anew(device: Recorder) -> None:
    """A sampler that keeps its latents in one tensor, and a prompt that is written over."""
    toy, model, launched = both(cached_blocks=4)
    calls = calls_of(toy)
    sample, text = calls[0][0][0].clone(), calls[0][1]["encoder_hidden_states"].clone()

    def run(model: Any) -> list[Any]:
        made = []
        text.copy_(calls[0][1]["encoder_hidden_states"])
        for seed in range(2):
            with torch.no_grad(), deltapass.session(steps=STEPS) as session:
                text.mul_(0.5 + seed)
                for step, (args, _) in enumerate(calls):
                    session.step(step)
                    sample.data.copy_(args[0])  # which nobody counts
                    made.append(model(sample, args[1], encoder_hidden_states=text))
        return made

    assert same(run(model), run(launched))
    assert device.replays == 2 * STEPS


def test_two_threads_replay_one_after_the_other(device: Recorder) -> None:
    toy, model, launched = both(**LINEAR)
    many = [calls_of(toy, seed) for seed in range(3)]
    wanted = [in_session(launched, calls)[0] for calls in many]
    in_session(model, many[0])
    results: list[Any] = [None] * 3
    start = threading.Barrier(3)

    def request(which: int) -> None:
        start.wait()
        results[which] = in_session(model, many[which])[0]

    threads = [threading.Thread(target=request, args=(which,)) for which in range(3)]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    assert all(map(same, results, wanted))


def test_graphs_give_way_by_bytes(device: Recorder) -> None:
    """Those that were not used for the longest time."""
    toy, model, launched = both(cached_blocks=4)
    calls = calls_of(toy)
    in_session(model, calls)
    held = [weakref.ref(graph) for graph in device.graphs]
    device.graphs.clear()
    assert len(held) > 2
    assert all(each() is not None for each in held)
    device.limit = 1
    for weight in toy.parameters():
        weight.data = weight.data.clone()
    assert same(in_session(model, calls[:1])[0], in_session(launched, calls[:1])[0])
    assert all(each() is None for each in held)


def test_graphs_that_find_no_room_are_launched(device: Recorder) -> None:
    """Variants that take turns in room for one: captured again and again, they had better not."""
    device.limit = 1
    toy, model, launched = both(cached_blocks=4)
    calls = calls_of(toy, steps=2 * STEPS)
    with pytest.warns(LaunchedWarning, match="captured 8 times"):
        results = [in_session(model, calls)[0] for _ in range(3)]
    wanted = in_session(launched, calls)[0]
    assert all(same(each, wanted) for each in results)
    assert "synchronize" in device.events, "no graph goes while it may be running"
    replays = device.replays
    in_session(model, calls)
    assert device.replays == replays


def test_what_cannot_be_captured_is_launched_and_said_once(device: Recorder) -> None:
    device.fails = "operation not permitted when stream is capturing\nmore"
    toy, model, launched = both(cached_blocks=4)
    calls = calls_of(toy)
    with pytest.warns(LaunchedWarning, match="a capture failed: .* is capturing$") as caught:
        results = in_session(model, calls)[0]
        results += in_session(model, calls)[0]
    assert len(caught) == 1
    wanted = in_session(launched, calls)[0]
    assert same(results, [*wanted, *wanted])


def test_a_model_on_a_device_without_graphs_is_launched() -> None:
    toy, model, launched = both(cached_blocks=4)
    calls = calls_of(toy)
    with pytest.warns(LaunchedWarning, match="no CUDA graphs.* lies on the device cpu"):
        results, report = in_session(model, calls)
    assert same(results, in_session(launched, calls)[0])
    assert report.cached > 0


def test_an_input_elsewhere_is_named(device: Recorder, monkeypatch: pytest.MonkeyPatch) -> None:
    toy, model, _ = both(cached_blocks=4)
    monkeypatch.setattr(graphed, "_place", lambda inputs: torch.device("cpu", 1))
    monkeypatch.setattr(graphed, "DEVICES", {"cpu": lambda place: device})
    with pytest.warns(LaunchedWarning, match="lies on cpu and the model on cpu:1; move it there"):
        in_session(model, calls_of(toy))


def test_graphs_go_with_the_model(device: Recorder) -> None:
    toy, model, _ = both(cached_blocks=4)
    in_session(model, calls_of(toy))
    held = [weakref.ref(graph) for graph in device.graphs]
    device.graphs.clear()
    device.events.clear()
    assert held
    assert all(each() is not None for each in held)
    del model
    torch._dynamo.reset()
    gc.collect()
    assert all(each() is None for each in held)
    assert device.events == ["synchronize"], "none may be running when its memory goes"


# ---- slots ---------------------------------------------------------------------------------------


LAYOUTS = {
    "number": torch.zeros(()),
    "transposed": torch.ones(3, 4).t(),
    "repeated": torch.arange(3.0)[:, None].expand(3, 5),
    "one number": torch.ones(1).expand(2, 1, 4),
    "gaps": torch.arange(12.0).view(2, 6)[:, ::2],
    "empty": torch.zeros(0, 3),
    "whole": torch.arange(4),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_slot_is_laid_out_as_what_it_holds(layout: str) -> None:
    given = LAYOUTS[layout]
    slot = slots.Slot(given)
    place = slot.tensor.data_ptr()
    for value in (given, given.clone() if 0 in given.stride() else given + 1):
        slot.fill(value, always=False)
        assert torch.equal(slot.tensor, value)
    assert slot.tensor.stride() == given.stride()
    assert slot.tensor.data_ptr() == place
    copy = slots.copy_out(slot.tensor)
    assert torch.equal(copy, slot.tensor)
    assert copy.data_ptr() != place or not copy.numel()
    assert 0 in given.stride() or copy.stride() == given.stride()


def test_a_slot_copies_what_it_does_not_hold() -> None:
    given, copies = torch.randn(4), []
    slot = slots.Slot(given)

    def fills(value: torch.Tensor, *, always: bool = False) -> bool:
        slot.tensor.fill_(7.0)
        slot.fill(value, always=always)
        copies.append(value)
        return torch.equal(slot.tensor, value)

    assert fills(given)
    assert not fills(given)
    assert fills(given, always=True)
    given.add_(1)
    assert fills(given)
    given.data = torch.randn(4)
    assert fills(given)
    assert fills(given.clone())
    with torch.inference_mode():
        uncounted = torch.randn(4)
        assert fills(uncounted)
        assert fills(uncounted)
    with pytest.raises(deltapass.errors.InternalError, match=r"a graph for \(4,\) is given \(1,\)"):
        slot.fill(torch.ones(1), always=True)
