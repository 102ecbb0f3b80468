"""tensorrt/build.py: engines really built by TensorRT-RTX, the cache around them, the library."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

pytest.importorskip("onnx")

from deltapass.backends.tensorrt.build import Built, Range, Settings, build
from deltapass.backends.tensorrt.command import trtexec_line
from deltapass.backends.tensorrt.library import (
    Library,
    load_library,
)
from engine_graphs import EXTERNAL, D, Files, product, weight
from onnx import TensorProto, helper

from deltapass.errors import EngineBuildError, MissingLibraryError, OptionError

STATIC = {"x": Range.fixed((2, D))}
BATCHES = {"x": Range(smallest=(1, D), usual=(2, D), largest=(4, D))}


@pytest.fixture(scope="module")
def rtx() -> Library:
    pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX is not installed")
    return load_library("tensorrt-rtx")


@pytest.fixture
def saved(tmp_path: Path) -> Files:
    return Files(tmp_path)


# ---- building ----------------------------------------------------------------------------------


def test_static_graph_becomes_an_engine(rtx: Library, saved: Files) -> None:
    built = build(saved(product()), STATIC, library=rtx)
    assert not built.cached
    assert built.layers == 3  # the weights, the product, the activation
    assert len(built.engine) > 1000
    assert "INFO" in built.log
    assert 0 < built.seconds < 60


def test_engine_is_built_for_the_architectures_asked_for(rtx: Library, saved: Files) -> None:
    path = saved(product())
    sizes = [
        len(build(path, STATIC, Settings(architectures=asked), rtx).engine)
        for asked in (("SM89",), ("SM89", "SM120"))
    ]
    assert sizes[0] < sizes[1]


def test_free_batch_becomes_a_profile(rtx: Library, saved: Files) -> None:
    assert build(saved(product(batch="b")), BATCHES, library=rtx).layers == 3


def test_half_precision_comes_from_the_graph(rtx: Library, saved: Files) -> None:
    halves = saved(product(held=weight(0, np.float16)))
    assert build(halves, STATIC, library=rtx).layers == 3


def test_bfloat16_comes_from_the_graph(rtx: Library, saved: Files) -> None:
    held = helper.make_tensor("w", TensorProto.BFLOAT16, [D, D], [0.5] * D * D)
    assert build(saved(product(held=held)), STATIC, library=rtx).layers == 3


def test_external_data_is_found_beside_the_file(
    rtx: Library, saved: Files, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    path = saved(product(), **EXTERNAL)
    monkeypatch.chdir(tmp_path)
    assert build(path, STATIC, library=rtx).layers == 3


class Tiny(nn.Module):
    """A block, and a delta as its second output."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.linear = nn.LayerNorm(D), nn.Linear(D, D)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        h = x + nn.functional.gelu(self.linear(self.norm(x)))
        return h, h - x


@pytest.mark.filterwarnings("ignore")
def test_exported_torch_module_becomes_an_engine(rtx: Library, tmp_path: Path) -> None:
    pytest.importorskip("onnxscript")
    torch.onnx.export(
        Tiny().eval(),
        (torch.zeros(2, D),),
        str(tmp_path / "tiny.onnx"),
        dynamo=True,
        external_data=True,
        input_names=["x"],
        verbose=False,
    )
    assert build(tmp_path / "tiny.onnx", STATIC, library=rtx).layers > 5


@dataclass(frozen=True)
class Refused:
    """A build that is refused, and what the error must name."""

    model: Callable[[], Any]
    ranges: dict[str, Range] = field(default_factory=lambda: dict(STATIC))
    says: str = ""


REFUSED = {
    "unknown operator": Refused(
        lambda: product(operator="NoSuchOperator"),
        says=r"node 'second' \(NoSuchOperator\): Op type NoSuchOperator is not supported",
    ),
    "unknown input": Refused(
        product, {**STATIC, "z": Range.fixed((1,))}, says="no input 'z'.*are x"
    ),
    "no range": Refused(lambda: product(batch="b"), {}, says="'x' has free dimensions .-1, 8. and"),
    "other rank": Refused(product, {"x": Range.fixed((2,))}, says="'x' is .2, 8. and its range"),
    "other size": Refused(product, {"x": Range.fixed((3, D))}, says="range says .3, 8."),
    "falling range": Refused(
        lambda: product(batch="b"),
        {"x": Range(smallest=(4, D), usual=(2, D), largest=(1, D))},
        says="does not rise",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused_build_names_the_reason(rtx: Library, saved: Files, case: str) -> None:
    refused = REFUSED[case]
    with pytest.raises(EngineBuildError, match=refused.says):
        build(saved(refused.model()), refused.ranges, library=rtx)


def test_missing_and_damaged_files_are_named(rtx: Library, saved: Files, tmp_path: Path) -> None:
    with pytest.raises(EngineBuildError, match="there is no file"):
        build(tmp_path / "none.onnx", STATIC, library=rtx)
    path = saved(product())
    path.write_bytes(b"no model")
    with pytest.raises(EngineBuildError, match=r"model\.onnx"):
        build(path, STATIC, library=rtx)


def test_unknown_architecture_is_refused(rtx: Library, saved: Files) -> None:
    with pytest.raises(EngineBuildError, match=r"SM89.*not SM12345"):
        build(saved(product()), STATIC, Settings(architectures=("SM12345",)), rtx)


# ---- the cache around a build ------------------------------------------------------------------


@pytest.fixture
def counted(rtx: Library, tmp_path: Path, saved: Files) -> Callable[..., Built]:
    cache = Settings(cache_dir=tmp_path / "cache")

    def run(model: Any = None, ranges: Any = STATIC, **settings: Any) -> Built:
        path = saved(product() if model is None else model)
        return build(path, ranges, replace(cache, **settings), rtx)

    return run


def test_second_build_is_found_and_equal(counted: Callable[..., Built]) -> None:
    first, second = counted(), counted()
    assert (first.cached, second.cached) == (False, True)
    assert (first.engine, first.layers) == (second.engine, second.layers)
    assert second.seconds < first.seconds


def test_other_weights_settings_and_ranges_are_not_found(counted: Callable[..., Built]) -> None:
    counted()
    others = [
        counted(product(held=weight(1))),
        counted(tf32=True),
        counted(effort=1),
        counted(architectures=("SM89",)),
        counted(product(batch="b"), BATCHES),
        counted(product(batch="b"), {"x": replace(BATCHES["x"], largest=(3, D))}),
    ]
    assert not any(built.cached for built in others)


def test_truncated_engine_is_built_again(counted: Callable[..., Built], tmp_path: Path) -> None:
    first = counted()
    (path,) = (tmp_path / "cache").glob("*.engine")
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    again = counted()
    assert not again.cached
    assert counted().cached
    assert again.layers == first.layers


def test_another_version_of_the_library_does_not_share_engines(
    counted: Callable[..., Built], rtx: Library, tmp_path: Path, saved: Files
) -> None:
    counted()
    newer = replace(rtx, version="99")
    assert not build(saved(product()), STATIC, Settings(cache_dir=tmp_path / "cache"), newer).cached


# ---- full TensorRT, which is not on the package index ------------------------------------------


class Config:
    """A stand-in for the builder's configuration: notes what it is told."""

    def __init__(self, calls: list[str]) -> None:
        self.calls = calls

    def clear_flag(self, flag: str) -> None:
        self.calls.append(f"clear {flag}")

    def add_optimization_profile(self, profile: Any) -> int:
        return 0

    def create_timing_cache(self, content: bytes) -> bytes | None:
        return None if content == b"damaged" else content

    def set_timing_cache(self, cache: bytes, mismatch: bool) -> None:
        self.calls.append(f"timings {cache!r}")

    def get_timing_cache(self) -> Any:
        return SimpleNamespace(serialize=lambda: b"timings")


class Builder:
    """A stand-in for the builder: a network of one input, and no engine to speak of."""

    def __init__(self, calls: list[str]) -> None:
        self.calls = calls

    def create_network(self, flags: int) -> Any:
        self.calls.append(f"network {flags}")
        x = SimpleNamespace(name="x", shape=(2, D))
        return SimpleNamespace(num_inputs=1, get_input=lambda at: x, num_layers=3)

    def create_builder_config(self) -> Config:
        return Config(self.calls)

    def create_optimization_profile(self) -> Any:
        return SimpleNamespace(set_shape=lambda *shapes: None)

    def build_serialized_network(self, network: Any, config: Config) -> bytes:
        return b"an engine"


class Logger:
    INTERNAL_ERROR, ERROR, VERBOSE = range(3)


def full(calls: list[str]) -> Library:
    parser = SimpleNamespace(parse_from_file=lambda path: True)
    module = SimpleNamespace(
        ILogger=Logger,
        Builder=lambda logger: Builder(calls),
        OnnxParser=lambda network, logger: parser,
        BuilderFlag=SimpleNamespace(TF32="tf32"),
        NetworkDefinitionCreationFlag=SimpleNamespace(),  # strongly typed alone, as in version 11
    )
    return Library(module=module, flavour="tensorrt", version="11.0")


def test_full_tensorrt_keeps_its_timings(tmp_path: Path, saved: Files) -> None:
    calls: list[str] = []
    library = full(calls)
    settings = Settings(cache_dir=tmp_path / "cache")
    for seed in range(2):
        build(saved(product(held=weight(seed))), STATIC, settings, library)
    (kept,) = (tmp_path / "cache").glob("*.timings")
    kept.write_bytes(b"damaged")
    build(saved(product(held=weight(2))), STATIC, settings, library)
    told = [call for call in calls if call.startswith("timings")]
    assert told == ["timings b''", "timings b'timings'", "timings b''"]
    assert calls[:2] == ["network 0", "clear tf32"]


def test_another_gpu_does_not_share_engines_built_for_the_one_at_hand(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, saved: Files
) -> None:
    library = full([])
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (9, 0))
    found = []
    for name in ("one", "two", "one"):
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda name=name: name)
        settings = Settings(cache_dir=tmp_path / "cache")
        found.append(build(saved(product()), STATIC, settings, library).cached)
    assert found == [False, False, True]


# ---- the library -------------------------------------------------------------------------------


def absent(monkeypatch: pytest.MonkeyPatch, *names: str) -> None:
    real = importlib.import_module

    def load(name: str, *rest: Any) -> Any:
        if name in names:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
        return real(name, *rest)

    monkeypatch.setattr(importlib, "import_module", load)


def test_missing_library_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    absent(monkeypatch, "tensorrt", "tensorrt_rtx")
    for flavour in ("tensorrt", "tensorrt-rtx"):
        with pytest.raises(MissingLibraryError, match=rf"deltapass\[{flavour}\]"):
            load_library(flavour)
    with pytest.raises(MissingLibraryError, match=r"tensorrt nor tensorrt_rtx.*deltapass\[tens"):
        load_library()


def test_what_is_installed_is_taken(rtx: Library, monkeypatch: pytest.MonkeyPatch) -> None:
    absent(monkeypatch, "tensorrt")
    assert load_library().flavour == "tensorrt-rtx"
    assert load_library().version == rtx.version


def test_rtx_under_the_name_of_the_other_is_not_taken_for_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    proxy = SimpleNamespace(__name__="tensorrt", __version__="1", _package_name="tensorrt_rtx")
    monkeypatch.setattr(importlib, "import_module", lambda name: proxy)
    with pytest.raises(MissingLibraryError):
        load_library("tensorrt")


def test_unknown_flavour_is_an_error() -> None:
    with pytest.raises(OptionError, match="'tensorrt', 'tensorrt-rtx'"):
        load_library("tensort")


# ---- the command line --------------------------------------------------------------------------


def test_line_names_free_shapes(saved: Files) -> None:
    path = saved(product(batch="b"))
    assert trtexec_line(path, "out.engine", BATCHES, "tensorrt") == (
        f"trtexec --onnx={path} --saveEngine=out.engine --stronglyTyped"
        " --minShapes=x:1x8 --optShapes=x:2x8 --maxShapes=x:4x8"
    )


def test_line_names_a_free_shape_that_has_one_size_only(saved: Files) -> None:
    path = saved(product(batch="b"))
    one = {"x": Range(smallest=(2, D), usual=(2, D), largest=(2, D), free=True)}
    line = trtexec_line(path, "out.engine", one, "tensorrt")
    assert line.endswith("--minShapes=x:2x8 --optShapes=x:2x8 --maxShapes=x:2x8")


def test_line_of_a_static_graph_names_no_shapes(saved: Files) -> None:
    path = saved(product())
    line = trtexec_line(path, "my engine", STATIC, "tensorrt-rtx")
    assert line == f"tensorrt_rtx --onnx={path} '--saveEngine=my engine' --stronglyTyped"
