"""backends/kernels_behind.py: C++ kernels of several bodies are waited for once, after the last."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import Future
from typing import Any

import pytest
import torch
from deltapass.backends.inductor import InductorLowering
from deltapass.backends.kernels_behind import kernels_behind
from torch import fx, nn
from torch._inductor.async_compile import AsyncCompile
from torch._inductor.codecache import LambdaFuture

from deltapass.graph.program import Body, TensorSpec


def fused(name: str, times: float) -> Body:
    """sin, then a product: one kernel."""
    graph = fx.Graph()
    sine = graph.call_function(torch.sin, (graph.placeholder("x"),))
    graph.output((graph.call_function(torch.mul, (sine, times)),))
    spec = TensorSpec.of(torch.ones(3))
    module = fx.GraphModule(nn.Module(), graph)
    return Body(name=name, module=module, key=(name,), inputs=(spec,), outputs=(spec,))


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[dict[str, Any]]]:
    """The scopes that were waited for so far."""
    found: list[dict[str, Any]] = []
    wait = AsyncCompile._wait_futures

    def noting(self: AsyncCompile, scope: dict[str, Any]) -> None:
        found.append(scope)
        wait(self, scope)

    monkeypatch.setattr(AsyncCompile, "_wait_futures", noting)
    yield found


def future(kernel: str) -> dict[str, Any]:
    return {kernel: LambdaFuture(lambda: "ready")}


def test_bodies_are_right_after_the_block() -> None:
    lowering = InductorLowering()
    with lowering.together():
        runs = [lowering.lower(fused(f"body_{at}", 2.0 + at)) for at in range(2)]
    x = torch.ones(3)
    for at, run in enumerate(runs):
        torch.testing.assert_close(run(x)[0], x.sin() * (2.0 + at))


def test_cpp_kernels_are_waited_for_at_the_end(waits: list[dict[str, Any]]) -> None:
    first, second = future("cpp_fused_sin_0"), future("cpp_fused_mul_0")
    with kernels_behind():
        AsyncCompile()._wait_futures(first)
        AsyncCompile()._wait_futures(second)
        assert waits == []
    assert waits == [first, second] == [{"cpp_fused_sin_0": "ready"}, {"cpp_fused_mul_0": "ready"}]


def test_kernels_of_a_device_are_waited_for_at_once(waits: list[dict[str, Any]]) -> None:
    with kernels_behind():
        AsyncCompile()._wait_futures(future("triton_poi_fused_sin_0"))
        assert len(waits) == 1


def test_other_threads_wait_at_once(waits: list[dict[str, Any]]) -> None:
    with kernels_behind():
        other = threading.Thread(
            target=lambda: AsyncCompile()._wait_futures(future("cpp_fused_sin_0"))
        )
        other.start()
        other.join()
        assert len(waits) == 1


def test_torch_waits_as_before_afterwards() -> None:
    before = AsyncCompile._wait_futures
    with pytest.raises(ZeroDivisionError), kernels_behind():
        raise ZeroDivisionError
    assert AsyncCompile._wait_futures is before


def test_failing_compile_is_raised_at_the_end() -> None:
    def fails() -> None:
        raise RuntimeError("no compiler")

    scope = {"cpp_fused_sin_0": LambdaFuture(fails)}
    with pytest.raises(RuntimeError, match="no compiler"), kernels_behind():
        AsyncCompile()._wait_futures(scope)


def test_torch_that_waits_otherwise_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(AsyncCompile, "_wait_futures")
    with kernels_behind():
        assert not hasattr(AsyncCompile, "_wait_futures")


@pytest.mark.parametrize("also", [{}, future("cpp_fused_mul_0")])
def test_other_futures_are_waited_for_at_once(
    waits: list[dict[str, Any]], also: dict[str, Any]
) -> None:
    kernel: Future[str] = Future()
    kernel.set_result("ready")
    with kernels_behind():
        AsyncCompile()._wait_futures({"triton_poi_fused_sin_0": kernel, **also})
        assert len(waits) == 1


def test_all_are_waited_for_though_one_or_the_block_fails(waits: list[dict[str, Any]]) -> None:
    def fails() -> None:
        raise RuntimeError("no compiler")

    with pytest.raises(RuntimeError, match="no compiler"), kernels_behind():
        AsyncCompile()._wait_futures({"cpp_0": LambdaFuture(fails)})
        AsyncCompile()._wait_futures(future("cpp_1"))
    with pytest.raises(ZeroDivisionError), kernels_behind():
        AsyncCompile()._wait_futures({"cpp_0": LambdaFuture(fails)})
        AsyncCompile()._wait_futures(future("cpp_1"))
        raise ZeroDivisionError
    assert [list(scope) for scope in waits] == [["cpp_0"], ["cpp_1"]] * 2
    assert waits[3] == {"cpp_1": "ready"}


def test_overlapping_blocks_leave_no_hook_behind() -> None:
    before = AsyncCompile._wait_futures
    first, second = kernels_behind(), kernels_behind()
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    second.__exit__(None, None, None)
    assert AsyncCompile._wait_futures is before
