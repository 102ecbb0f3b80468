"""Models with quantised weights are cached as they are: by a wrapper of ours, and by torchao's."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from driving import compiled, in_session, oracle, sampled, tensors
from models import AdaLNDenoiser, randomise
from models.tiny import make_tiny
from torch import nn
from wrapped import Nested8Bit, Scaled8Bit, scaled

import deltapass
from deltapass.backend import analyse
from deltapass.compiler.outline import Outline
from deltapass.compiler.tracing import trace
from deltapass.errors import ExportError

STEPS = 4
FAMILIES = ("dit", "pixart", "sd3", "flux", "wan")


def outlined(model: nn.Module, call: tuple[Any, Any]) -> Outline:
    with torch.no_grad():
        return analyse(*trace(model, *call))


def trajectory(model: Any, depth: int = 4) -> list[Any]:
    return [model.inputs(999.0 - step, step) for step in range(STEPS)]


def assert_as_the_oracle(subject: Any, model: nn.Module, calls: Sequence[Any]) -> None:
    """Eager: every cached step as the oracle's, and a refresh as the plain model's, bit for bit."""
    run = compiled(model, schedule="delta-cache-deep", steps=STEPS, strict=True)
    outputs, report = in_session(run, calls)
    assert report.cached == STEPS // 2
    table = tuple(entry.realised for entry in report.entries)
    assert all(map(torch.equal, tensors(outputs), tensors(oracle(subject, table, calls))))
    with torch.no_grad():
        plain = model(*calls[0][0], **calls[0][1])
    assert torch.equal(tensors([plain])[0], tensors(outputs)[0])


# ---- a wrapper written by hand ----------------------------------------------------------------


@pytest.mark.parametrize("kind", [Scaled8Bit, Nested8Bit])
def test_a_wrapper_of_two_tensors_equals_the_oracle(kind: type[Scaled8Bit]) -> None:
    model = scaled(randomise(AdaLNDenoiser(depth=4)), kind)
    assert_as_the_oracle(model, model, trajectory(model))


def test_equal_quantised_blocks_share_one_body_and_others_do_not() -> None:
    model = scaled(randomise(AdaLNDenoiser(depth=5)))
    call = AdaLNDenoiser.inputs(model, 500.0)  # type: ignore[arg-type]
    plain = outlined(randomise(AdaLNDenoiser(depth=5)), call)
    found = outlined(model, call)
    assert len(found.bodies) == len(plain.bodies) == 3
    assert found.program.macs == plain.program.macs
    layer = model.blocks[2].mlp[0]  # type: ignore[index, union-attr]
    layer.weight = nn.Parameter(
        Scaled8Bit(layer.weight.q, layer.weight.s, offset=0.5), requires_grad=False
    )
    assert len(outlined(model, call).bodies) == 4


@pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")  # of Inductor's own
def test_inductor_compiles_what_the_weights_are() -> None:
    model = scaled(randomise(AdaLNDenoiser(depth=4)))
    other = next(w for w in model.blocks[3].parameters() if isinstance(w, Scaled8Bit))  # type: ignore[index, union-attr]
    other.offset = 0.25  # its block has a body of its own
    calls = trajectory(model)
    run = compiled(
        model, lowering="inductor", schedule="delta-cache-deep", cached_blocks=2, steps=STEPS,
        strict=True,
    )  # fmt: skip
    outputs, report = in_session(run, calls)
    assert report.cached == STEPS // 2
    table = tuple(entry.realised for entry in report.entries)
    for ours, theirs in zip(outputs, oracle(model, table, calls), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


def test_export_refuses_them_before_it_traces(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Any
) -> None:
    model = scaled(randomise(AdaLNDenoiser(depth=2))).eval()
    args, kwargs = AdaLNDenoiser.inputs(model, 500.0)  # type: ignore[arg-type]
    monkeypatch.setattr(torch.export, "export", pytest.fail)
    with pytest.raises(ExportError, match="is of type Scaled8Bit"):
        deltapass.export(model, args, kwargs, tmp_path / "bundle", format="aoti")


# ---- torchao ----------------------------------------------------------------------------------


def int8_weight_only() -> Any:
    from torchao.quantization import Int8WeightOnlyConfig

    return Int8WeightOnlyConfig()


def int8_dynamic() -> Any:
    from torchao.quantization import Int8DynamicActivationInt8WeightConfig

    return Int8DynamicActivationInt8WeightConfig()


def float8_weight_only() -> Any:
    from torchao.quantization import Float8WeightOnlyConfig

    return Float8WeightOnlyConfig()


WAYS = (int8_weight_only, int8_dynamic, float8_weight_only)


@pytest.fixture
def quantize() -> Callable[[nn.Module, Any], None]:
    """torchao's `quantize_`; its import warns of libraries for GPUs."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        quantization = pytest.importorskip("torchao.quantization")

    def quantize(model: nn.Module, way: Callable[[], Any]) -> None:
        model.requires_grad_(False)
        quantization.quantize_(model, way())
        assert sum(type(p).__name__.endswith("8Tensor") for p in model.parameters()) > 8

    return quantize


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("family", FAMILIES)
def test_torchao_equals_the_oracle(family: str, way: Any, quantize: Any) -> None:
    tiny = make_tiny(family)
    quantize(tiny.model, way)
    calls = sampled([tiny.call(1000.0 - 100 * step, step) for step in range(STEPS)])
    assert_as_the_oracle(tiny, tiny.model, calls)


@pytest.mark.parametrize("way", WAYS)
def test_torchao_has_the_bodies_and_macs_of_the_plain_model(way: Any, quantize: Any) -> None:
    tiny = make_tiny("pixart")
    call = tiny.call(500.0, 0)
    plain = outlined(tiny.model, call)
    quantize(tiny.model, way)
    found = outlined(tiny.model, call)
    assert len(found.bodies) == len(plain.bodies)
    assert found.program.macs.full == plain.program.macs.full


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")  # of Inductor's own
@pytest.mark.parametrize("family", FAMILIES)
def test_torchao_under_inductor_refreshes_as_plain_inductor(family: str, quantize: Any) -> None:
    """Inductor rounds otherwise than eager; a step of 127 more or less in the activations."""
    tiny = make_tiny(family)
    quantize(tiny.model, int8_dynamic)
    calls = sampled([tiny.call(1000.0 - 100 * step, step) for step in range(STEPS)])
    run = compiled(
        tiny.model, lowering="inductor", schedule="delta-cache-deep", steps=STEPS, strict=True
    )
    outputs, report = in_session(run, calls)
    assert report.cached == STEPS // 2
    args, kwargs = calls[0]
    with torch.no_grad():
        plain = torch.compile(tiny.model, fullgraph=True)(*args, **kwargs)
    torch.testing.assert_close(*tensors([outputs[0], plain]), rtol=1e-3, atol=1e-3)
