"""tensorrt/lowering.py: over a stand-in for torch_tensorrt, and a dry run with the real one."""

from __future__ import annotations

import importlib
import importlib.util
import json
import operator
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import models
import pytest
import torch
from deltapass.backends.tensor_graphs import without_layouts
from deltapass.backends.tensorrt.graphs import export, operators_outside
from deltapass.backends.tensorrt.lowering import SETTINGS, TensorRTLowering
from torch import Tensor, fx, nn

import deltapass.compiler.lowering
import deltapass.options
from deltapass.compiler.lowering import LoweredBodies
from deltapass.errors import (
    EngineBuildError,
    LoweringError,
    MissingDeviceError,
    MissingLibraryError,
)
from deltapass.graph.program import Body, TensorSpec

HERE = Path(__file__).parent
TABLE = {"tensorrt": "deltapass.backends.tensorrt.lowering:TensorRTLowering"}


# ---- bodies ------------------------------------------------------------------------------------


def body_of(function: Callable[..., Any], *given: Tensor, name: str = "body") -> Body:
    """The function as one body, with the layouts that running it gives."""
    module = fx.symbolic_trace(function)
    results = module(*given)
    specs = [tuple(map(TensorSpec.of, values)) for values in (given, results)]
    return Body(name=name, module=module, key=(name,), inputs=specs[0], outputs=specs[1])


X, W = torch.linspace(-1, 1, 12).view(3, 4), torch.linspace(0, 1, 16).view(4, 4)


def layer(x: Tensor, w: Tensor) -> tuple[Tensor, ...]:
    return (x + torch.tanh(x @ w),)


def turned(x: Tensor, w: Tensor) -> tuple[Tensor, ...]:
    """An output that is no dense tensor."""
    return ((x @ w).t(),)


# ---- a stand-in for torch_tensorrt -------------------------------------------------------------


class Engine(nn.Module):
    """Runs what went into the engine; its outputs are dense, as an engine's are."""

    def __init__(self, program: Any) -> None:
        super().__init__()
        self.program = (program,)

    def forward(self, *arguments: Tensor) -> list[Tensor]:
        return [value.contiguous() for value in self.program[0](*arguments)]


def in_engine(exported: Any) -> fx.GraphModule:
    """A graph that calls one engine."""
    module = exported.module()
    graph = fx.Graph()
    given = [graph.placeholder(n.target) for n in module.graph.nodes if n.op == "placeholder"]
    called = graph.call_module("_run_on_acc_0", tuple(given))
    (results,) = next(n for n in module.graph.nodes if n.op == "output").args
    taken = [graph.call_function(operator.getitem, (called, at)) for at in range(len(results))]
    graph.output(tuple(taken))
    return fx.GraphModule({"_run_on_acc_0": Engine(module)}, graph)


def in_torch(exported: Any) -> fx.GraphModule:
    """A graph that no engine took."""
    module: fx.GraphModule = exported.module()
    return module


@dataclass
class Fake:
    """What `torch_tensorrt.dynamo.compile` was told, and what it gives."""

    gives: Callable[[Any], Any] = in_engine
    told: list[dict[str, Any]] = field(default_factory=list)

    def compile(
        self,
        exported: Any,
        *,
        arg_inputs: Any,
        device: Any = None,
        attn_bias_is_causal: bool = True,
        pass_through_build_failures: bool = False,
        require_full_compilation: bool = False,
        min_block_size: int = 5,
        truncate_double: bool = False,
        cache_built_engines: bool = False,
        reuse_cached_engines: bool = False,
        immutable_weights: bool = True,
        optimization_level: int | None = None,
        disable_tf32: bool = False,
    ) -> Any:
        told = dict(locals())
        self.told.append({name: told[name] for name in told if name not in ("self", "exported")})
        return self.gives(exported)


def install(monkeypatch: pytest.MonkeyPatch, fake: Any) -> None:
    module: Any = ModuleType("torch_tensorrt")
    module.__spec__ = ModuleSpec("torch_tensorrt", None)
    module.Input = SimpleNamespace
    module.dynamo = SimpleNamespace(compile=fake.compile)
    monkeypatch.setitem(sys.modules, "torch_tensorrt", module)


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> Fake:
    made = Fake()
    install(monkeypatch, made)
    return made


@pytest.fixture
def in_table(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The lowering can be asked for by name."""
    monkeypatch.setattr(deltapass.compiler.lowering, "LOWERINGS", TABLE)
    monkeypatch.setattr(deltapass.options, "LOWERING_NAMES", tuple(TABLE))
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


# ---- what is asked of the library --------------------------------------------------------------


def test_body_becomes_one_engine_with_its_weights_as_arguments(fake: Fake) -> None:
    body = body_of(layer, X, W)
    run = TensorRTLowering().lower(body)
    assert torch.equal(run(X, W)[0], layer(X, W)[0])
    assert torch.equal(run(X, 2 * W)[0], layer(X, 2 * W)[0])
    (told,) = fake.told
    assert [(tuple(each.shape), each.dtype) for each in told["arg_inputs"]] == [
        ((3, 4), torch.float32),
        ((4, 4), torch.float32),
    ]


def test_library_is_told_every_setting(fake: Fake) -> None:
    TensorRTLowering().lower(body_of(layer, X, W))
    (told,) = fake.told
    assert {name: told[name] for name in SETTINGS} == dict(SETTINGS)
    assert told["attn_bias_is_causal"] is False
    assert told["pass_through_build_failures"] is True
    assert told["truncate_double"] is True
    assert told["disable_tf32"] is True
    assert told["optimization_level"] is None
    assert told["device"] == torch.device("cpu")


def test_mode_and_precision_of_torch_are_passed_on(
    fake: Fake, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch, "get_float32_matmul_precision", lambda: "high")
    TensorRTLowering("max-autotune-no-cudagraphs").lower(body_of(layer, X, W))
    assert fake.told[0]["optimization_level"] == 5
    assert fake.told[0]["disable_tf32"] is False


def test_setting_that_the_library_would_ignore_is_an_error(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def older(exported: Any, arg_inputs: Any, min_block_size: int = 5, **_: Any) -> Any:
        raise AssertionError("compiled nevertheless")

    install(monkeypatch, SimpleNamespace(compile=older))
    with pytest.raises(EngineBuildError, match=r"no setting attn_bias_is_causal, pass_through"):
        TensorRTLowering().lower(body_of(layer, X, W))


def test_library_that_is_not_whole_is_named(fake: Fake, monkeypatch: pytest.MonkeyPatch) -> None:
    def load(name: str) -> Any:
        raise Exception("libnvinfer.so is missing")  # as torch_tensorrt does

    lowering = TensorRTLowering()
    monkeypatch.setattr(importlib, "import_module", load)
    with pytest.raises(MissingLibraryError, match=r"libnvinfer.*deltapass\[tensorrt\]"):
        lowering.lower(body_of(layer, X, W))


def test_trivial_body_needs_no_engine(fake: Fake) -> None:
    body = body_of(lambda x, y: (torch.sub(x, y),), X, X)
    assert torch.equal(TensorRTLowering().lower(body)(X, X)[0], torch.zeros(3, 4))
    assert fake.told == []


def test_outputs_are_laid_out_as_the_body_says(fake: Fake) -> None:
    body = body_of(turned, X, W)
    assert body.outputs[0].stride == (1, 4)
    (result,) = TensorRTLowering().lower(body)(X, W)
    assert TensorSpec.of(result) == body.outputs[0]
    assert torch.equal(result, (X @ W).t())


def test_body_is_left_as_it_was(fake: Fake) -> None:
    body = body_of(layer, X, W)
    before = (str(body.module.graph), [dict(node.meta) for node in body.module.graph.nodes])
    TensorRTLowering().lower(body)
    assert (str(body.module.graph), [dict(n.meta) for n in body.module.graph.nodes]) == before


# ---- nothing falls back silently ---------------------------------------------------------------


def test_operators_outside_the_engine_are_an_error_that_names_them(fake: Fake) -> None:
    fake.gives = in_torch
    with pytest.raises(EngineBuildError) as caught:
        TensorRTLowering().lower(body_of(layer, X, W, name="block_7"))
    for part in ("block_7", "3 operators stay outside", "aten.tanh.default", "aten.matmul.default"):
        assert part in str(caught.value)


def test_operators_in_a_torch_part_are_found() -> None:
    inner = fx.symbolic_trace(lambda x: (x.sin(),))
    graph = fx.Graph()
    graph.output(graph.call_module("_run_on_gpu_0", (graph.placeholder("x"),)))
    module = fx.GraphModule({"_run_on_gpu_0": inner}, graph)
    assert operators_outside(module) == ("sin",)


def test_casts_at_the_border_are_no_operators_outside() -> None:
    to, graph = torch.ops.aten._to_copy.default, fx.Graph()
    entered = graph.call_function(to, (graph.placeholder("x"),), {"dtype": torch.float32})
    ran = graph.call_module("_run_on_acc_0", (entered,))
    left = graph.call_function(to, (ran,), {"dtype": torch.float64})
    graph.output((left,))
    module = fx.GraphModule({"_run_on_acc_0": nn.Identity()}, graph)
    assert operators_outside(module) == ()
    with graph.inserting_after(left):
        between = graph.call_function(torch.neg, (left,))
    graph.output_node().args = ((between,),)
    assert operators_outside(module) == ("aten._to_copy.default", str(torch.neg))


def test_failed_build_is_an_error_that_names_the_body(fake: Fake) -> None:
    def fail(exported: Any) -> Any:
        raise AssertionError  # without a word, as where no engine was made

    fake.gives = fail
    with pytest.raises(LoweringError, match=r"'body'.*AssertionError"):
        LoweredBodies("tensorrt", Willing()).get(body_of(layer, X, W))


class Willing:
    """The lowering, asked for bodies on the CPU."""

    exact = False

    def __init__(self) -> None:
        self.real = TensorRTLowering()
        self.lower, self.plain = self.real.lower, self.real.plain

    def can_lower(self, body: Body) -> str | None:
        return None


# ---- graphs made ready -------------------------------------------------------------------------


def test_integers_are_promoted_in_the_open() -> None:
    module = fx.symbolic_trace(lambda t: (torch.cos(t * 0.1),))
    exported = export(module, [TensorSpec.of(torch.tensor([3, 700]))])
    targets = [str(node.target) for node in exported.graph.nodes if node.op == "call_function"]
    assert targets == ["aten._to_copy.default", "aten.mul.Tensor", "aten.cos.default"]
    (result,) = exported.module()(torch.tensor([3, 700]))
    torch.testing.assert_close(result, torch.cos(torch.tensor([3, 700]) * 0.1))


def test_integers_compared_with_a_fraction_are_promoted() -> None:
    exported = export(fx.symbolic_trace(lambda t: (t > 0.5,)), [TensorSpec.of(torch.tensor([1]))])
    assert "_to_copy" in str(exported.graph)
    assert exported.module()(torch.tensor([0, 1]).narrow(0, 1, 1))[0].item() is True


def test_integers_among_themselves_and_masks_stay() -> None:
    module = fx.symbolic_trace(lambda t, m, x: (t + 1, t > 1, torch.where(m, x, x * 2.0)))
    given = [torch.tensor([1, 2]), torch.tensor([True, False]), torch.ones(2)]
    exported = export(module, list(map(TensorSpec.of, given)))
    assert "_to_copy" not in str(exported.graph)


def test_copies_for_a_layout_are_left_out() -> None:
    graph = fx.Graph()
    added = graph.call_function(operator.add, (graph.placeholder("x"), 1))
    laid = graph.call_function(torch.empty_strided, ((3, 4), (1, 3)))
    graph.output((graph.call_method("copy_", (laid, added)),))
    module = fx.GraphModule(nn.Module(), graph)
    assert module(X)[0].stride() == (1, 3)
    left = without_layouts(module)
    calls = [node.target for node in left.graph.nodes if node.op.startswith("call")]
    assert calls == [operator.add]
    assert torch.equal(left(X)[0], X + 1)
    assert len(module.graph.nodes) == 5


# ---- what cannot be lowered --------------------------------------------------------------------


def test_body_off_the_gpu_cannot_be_lowered(fake: Fake) -> None:
    body = body_of(layer, X, W)
    assert "on the cpu device" in str(TensorRTLowering().can_lower(body))
    meta = body_of(layer, X.to("meta"), W.to("meta"))
    assert "on the meta device" in str(TensorRTLowering().can_lower(meta))


def test_body_on_a_gpu_that_is_not_there_cannot_be_lowered(
    fake: Fake, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = TensorSpec(shape=(1,), stride=(1,), dtype=X.dtype, device=torch.device("cuda", 0))
    module = fx.symbolic_trace(lambda x: (x.sin(),))
    body = Body(name="b", module=module, key=(), inputs=(spec,), outputs=(spec,))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert TensorRTLowering().can_lower(body) == "there is no CUDA device"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert TensorRTLowering().can_lower(body) is None


# ---- the whole graph ---------------------------------------------------------------------------


@pytest.fixture
def with_device(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (9, 0))


def test_plain_graph_is_one_engine(fake: Fake, with_device: None) -> None:
    module = fx.symbolic_trace(lambda x, n, w: (x @ w * n,))
    run = TensorRTLowering().plain(module, [X, 3, W])
    assert torch.equal(run(X, 3, W)[0], X @ W * 3)
    assert len(fake.told[0]["arg_inputs"]) == 2


def test_plain_graph_without_a_device_is_an_error(
    fake: Fake, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(MissingDeviceError, match="CUDA device"):
        TensorRTLowering().plain(fx.symbolic_trace(lambda x: (x,)), [X])


def test_plain_graph_that_fails_says_on_what(fake: Fake, with_device: None) -> None:
    fake.gives = in_torch
    with pytest.raises(EngineBuildError, match=r"the whole graph.*aten"):
        TensorRTLowering().plain(fx.symbolic_trace(lambda x: (x.sin(),)), [X])

    def fail(exported: Any) -> Any:
        raise AssertionError

    fake.gives = fail
    with pytest.raises(EngineBuildError, match=r"AssertionError \(on compute capability 9\.0\)"):
        TensorRTLowering().plain(fx.symbolic_trace(lambda x: (x.sin(),)), [X])


# ---- through torch.compile ---------------------------------------------------------------------


def compiled(model: nn.Module) -> Any:
    options = {"lowering": "tensorrt", "cached_blocks": 2}
    return torch.compile(model, backend="deltadit", options=options, fullgraph=True)


def absent(monkeypatch: pytest.MonkeyPatch) -> None:
    real = importlib.util.find_spec
    monkeypatch.delitem(sys.modules, "torch_tensorrt", raising=False)
    monkeypatch.setattr(
        importlib.util,
        "find_spec",
        lambda name, *rest: None if name == "torch_tensorrt" else real(name, *rest),
    )


def test_missing_library_is_one_clear_error(
    in_table: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    absent(monkeypatch)
    model = models.make("adaln", depth=4)
    args, kwargs = model.inputs(500.0)
    with torch.no_grad(), pytest.raises(torch._dynamo.exc.BackendCompilerFailed) as caught:
        compiled(model)(*args, **kwargs)
    error = caught.value.inner_exception
    assert isinstance(error, MissingLibraryError)
    assert "deltapass[tensorrt]" in str(error)
    assert "'tensorrt-rtx'" in str(error)


def test_model_off_the_gpu_is_one_clear_error(in_table: None, fake: Fake) -> None:
    model = models.make("adaln", depth=4)
    args, kwargs = model.inputs(500.0)
    with torch.no_grad(), pytest.raises(torch._dynamo.exc.BackendCompilerFailed) as caught:
        compiled(model)(*args, **kwargs)
    error = caught.value.inner_exception
    assert isinstance(error, LoweringError)
    assert "runs on cuda alone" in str(error)


def test_model_runs_through_engines(
    in_table: None, fake: Fake, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(TensorRTLowering, "can_lower", lambda self, body: None)
    model = models.make("adaln", depth=4)
    run = compiled(model)
    with torch.no_grad():
        args, kwargs = model.inputs(500.0)
        torch.testing.assert_close(run(*args, **kwargs), model(*args, **kwargs))
    assert len(fake.told) == 3  # the prologue, all blocks, the epilogue


# ---- the real library, without a GPU -----------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("name", ["contract", "dit", "pixart", "sd3", "flux", "cogvideox"])
def test_every_body_becomes_an_engine(name: str) -> None:
    pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX is not installed")
    pytest.importorskip("diffusers")
    if importlib.util.find_spec("torch_tensorrt") is None:
        pytest.skip("torch_tensorrt is not installed")
    done = subprocess.run(
        [sys.executable, str(HERE / "tensorrt_shim.py"), name],
        env={**os.environ, "PYTHONPATH": _path()},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["refused"] == {}
    assert found["engines"] + found["trivial"] == found["bodies"]
    assert found["difference"] < 1e-5


def _path() -> str:
    """The tests' shared modules, and whatever this process was told of."""
    tests = HERE.parents[1]
    shared = map(str, (tests, tests / "backends", tests.parent / "benchmarks"))
    return os.pathsep.join(filter(None, (*shared, os.environ.get("PYTHONPATH"))))
