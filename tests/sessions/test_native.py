"""The compiled check of weights: it says what Python says, and is built once, in the background."""

from __future__ import annotations

import subprocess
import sys
import time
from array import array
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from deltapass.sessions import native
from deltapass.sessions.native import NativeCheck, Unchanged, build, library_path, load
from deltapass.sessions.weights import MANY, WeightWatch, weigh

BUILDING = 900.0  # seconds: about ten alone; a build that died counts as dead after 600


@pytest.fixture(scope="module")
def unchanged() -> Unchanged:
    """The built check. Built where all processes of this machine look for it."""
    path = library_path()
    deadline = time.monotonic() + BUILDING
    while not path.exists() and time.monotonic() < deadline:
        assert build(path), f"it cannot be built: {path.with_suffix('.failed').read_text()}"
        time.sleep(0.2)
    found = load(path)
    assert found is not None
    return found


def weights(count: int = 3) -> list[torch.Tensor]:
    return [torch.nn.Parameter(torch.zeros(4), requires_grad=False) for _ in range(count)]


def in_place(some: list[torch.Tensor]) -> None:
    some[1].add_(1)


def other_memory(some: list[torch.Tensor]) -> None:
    some[1].data = torch.ones(4)


def other_object(some: list[torch.Tensor]) -> None:
    some[1] = torch.nn.Parameter(torch.ones(4))


def same_address(some: list[torch.Tensor]) -> None:
    """What is made right after something was freed may lie where that lay."""
    some[1] = None  # type: ignore[call-overload]
    some[1] = torch.nn.Parameter(torch.ones(4))


def exchanged(some: list[torch.Tensor]) -> None:
    some[0], some[1] = some[1], some[0]


def no_tensor(some: list[torch.Tensor]) -> None:
    some[1] = 7  # type: ignore[call-overload]


def moved_within_its_storage(some: list[torch.Tensor]) -> None:
    some[2].data = torch.zeros(8)[4:]


CHANGES = [
    *(in_place, other_memory, other_object, same_address, exchanged, no_tensor),
    moved_within_its_storage,
]


def ask(unchanged: Unchanged, some: list[torch.Tensor], noted: list[torch.Tensor]) -> bool:
    """Ask with a sample before the weights, as in a call; `noted` is how they were."""
    before = weigh(noted)
    positions = array("q", range(1, 1 + len(noted)))
    arguments = (torch.ones(2), *some)
    return unchanged(arguments, positions, before.objects, before.versions, before.places)


def test_unchanged_weights_are_the_same(unchanged: Unchanged) -> None:
    some = weights()
    assert ask(unchanged, some, some) is True


@pytest.mark.parametrize("change", CHANGES)
def test_every_change_is_seen(
    unchanged: Unchanged, change: Callable[[list[torch.Tensor]], None]
) -> None:
    some = weights()
    before = weigh(some)
    positions = array("q", range(len(some)))
    noted = before.objects, before.versions, before.places
    assert unchanged(tuple(some), positions, *noted) is True
    change(some)
    assert unchanged(tuple(some), positions, *noted) is False


def test_inference_tensors_count_no_versions_but_have_a_place(unchanged: Unchanged) -> None:
    with torch.inference_mode():
        some = [torch.zeros(4), torch.zeros(4)]
    assert ask(unchanged, some, some) is True
    with torch.inference_mode():
        assert ask(unchanged, [some[0], torch.zeros(4)], some) is False


def test_weights_without_memory_of_their_own_are_told_by_object(unchanged: Unchanged) -> None:
    some = [torch.zeros(4, device="meta"), torch.zeros(2).to_sparse()]
    assert ask(unchanged, some, some) is True
    assert ask(unchanged, [some[0], torch.zeros(2).to_sparse()], some) is False


def test_numbers_that_do_not_fit_are_refused(unchanged: Unchanged) -> None:
    some = weights()
    before = weigh(some)
    noted = before.objects, before.versions, before.places
    assert unchanged(tuple(some), array("q", [0, 1, 9]), *noted) is False
    assert unchanged(tuple(some), array("q", [0, 1]), *noted) is False
    with pytest.raises(TypeError, match="unchanged"):
        unchanged(some, array("q", [0, 1, 2]), *noted)  # type: ignore[arg-type]


# ---- the watch ---------------------------------------------------------------------------------


@pytest.fixture(params=["compiled", "python"])
def watch(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[WeightWatch]:
    if request.param == "compiled":
        request.getfixturevalue("unchanged")
    monkeypatch.setenv(native.SWITCH, str(int(request.param == "compiled")))
    made = WeightWatch(range(MANY))
    yield made
    assert made._native is not None
    assert (made._native.get() is not None) == (request.param == "compiled")


@pytest.mark.parametrize("change", [change for change in CHANGES if change is not no_tensor])
def test_the_watch_gives_the_same_object_until_something_changes(
    watch: WeightWatch, change: Callable[[list[torch.Tensor]], None]
) -> None:
    some = weights(MANY)
    first = watch.look(tuple(some))
    assert watch.look(tuple(some)) is first
    change(some)
    second = watch.look(tuple(some))
    assert second is not first
    assert watch.look(tuple(some)) is second


def test_models_that_take_turns_on_one_graph_are_both_known(watch: WeightWatch) -> None:
    one, other = tuple(weights(MANY)), tuple(weights(MANY))
    first, second = watch.look(one), watch.look(other)
    for _ in range(3):
        assert watch.look(one, first) is first
        assert watch.look(other, second) is second


class Wrapping(torch.nn.Parameter):
    """Answers for a tensor inside it, as quantised weights do."""

    inner: torch.Tensor

    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        with torch._C.DisableTorchFunctionSubclass():
            return func(*(getattr(arg, "inner", arg) for arg in args), **(kwargs or {}))


def test_weights_that_answer_for_others_are_asked_in_python(watch: WeightWatch) -> None:
    some = weights(MANY)
    some[5] = Wrapping(torch.zeros(4), requires_grad=False)
    some[5].inner = torch.zeros(4)  # type: ignore[attr-defined]
    first = watch.look(tuple(some))
    assert not first.plain
    assert watch.look(tuple(some), first) is first
    some[5].inner.add_(1)  # type: ignore[attr-defined]
    assert watch.look(tuple(some), first) is not first


def test_addresses_may_use_all_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.Tensor, "data_ptr", lambda _: 2**63 + 8)
    some = weights()
    assert weigh(some).still_holds(some)


# ---- building ----------------------------------------------------------------------------------


def test_models_of_few_weights_build_nothing() -> None:
    assert WeightWatch(range(MANY - 1))._native is None


def test_switched_off_it_is_neither_looked_for_nor_built(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(native.SWITCH, "0")
    monkeypatch.setattr(native, "build", pytest.fail)
    monkeypatch.setattr(native, "load", pytest.fail)
    assert NativeCheck().get() is None


@pytest.mark.parametrize("error", [PermissionError(13, "no"), RuntimeError("no home")])
def test_nowhere_to_put_it_is_no_error(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    def fail() -> Path:
        raise error

    monkeypatch.setenv(native.SWITCH, "1")
    monkeypatch.setattr(native, "library_path", fail)
    check = NativeCheck()
    assert check.get() is None
    monkeypatch.setattr(native, "library_path", pytest.fail)
    assert check.get() is None, "it is asked once"


def test_a_file_that_others_may_write_is_not_loaded(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    path = tmp_path / "it.so"
    path.write_bytes(b"")
    path.chmod(0o666)
    monkeypatch.setenv(native.SWITCH, "1")
    monkeypatch.setattr(native, "library_path", lambda: path)
    monkeypatch.setattr(native, "load", pytest.fail)
    assert NativeCheck().get() is None


def test_no_compiler_is_no_error(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setattr(native.shutil, "which", lambda _: None)
    assert build(tmp_path / "it.so") is False
    assert not list(tmp_path.iterdir())


def test_a_compiler_that_fails_is_asked_once_and_its_words_are_kept(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    compiler = tmp_path / "compiler"
    compiler.write_text("#!/bin/sh\necho no headers\nexit 1\n")
    compiler.chmod(0o755)
    monkeypatch.setenv("CXX", str(compiler))
    path = tmp_path / "made" / "it.so"
    assert build(path) is True
    failed = path.with_suffix(".failed")
    deadline = time.monotonic() + 60
    while not failed.exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert failed.read_text() == "no headers\n"
    assert build(path) is False
    assert not path.exists()


def test_who_comes_second_waits_and_a_dead_build_is_taken_over(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    started: list[object] = []
    monkeypatch.setenv("CXX", "c++")
    monkeypatch.setattr(native, "_start", lambda *given: started.append(given))
    path = tmp_path / "it.so"
    assert build(path) and build(path)
    assert len(started) == 1
    monkeypatch.setattr(native, "STALE", -1.0)
    assert build(path)
    assert len(started) == 2


def test_a_library_that_cannot_be_loaded_is_no_error(tmp_path: Path) -> None:
    path = tmp_path / "it.so"
    path.write_bytes(b"for another machine")
    assert load(path) is None


def test_importing_builds_nothing(tmp_path: Path) -> None:
    code = "import deltapass"
    env = {"TORCH_EXTENSIONS_DIR": str(tmp_path), "PATH": "/usr/bin:/bin"}
    subprocess.run([sys.executable, "-c", code], env=env, check=True)
    assert not list(tmp_path.iterdir())
