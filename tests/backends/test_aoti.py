"""The AOTInductor format. Compiling is slow: all but one test are marked so."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from driving import in_session
from models import Denoiser, make

pytest.importorskip("onnxruntime")  # the extra that bundles need

from deltapass.backends.aoti import AotiFormat

import deltapass
from deltapass.errors import OptionError


def toy() -> Denoiser:
    """With a weight that is not dense, as the file of weights will have it."""
    model = make("adaln")
    weight = model.get_parameter("blocks.1.mlp.0.weight")
    weight.data = weight.t().contiguous().t()
    return model


TOY = toy()  # made once: what of its weights is not seeded stays


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, deltapass.BundlePlan]:
    folder = tmp_path_factory.mktemp("aoti") / "bundle"
    args, kwargs = TOY.inputs(999.0, 0)
    options = {"format": "aoti", "order": 1, "batch": (1, 4), "cached_blocks": 4}
    return folder, deltapass.export(TOY, args, kwargs, folder, **options)


@pytest.mark.slow
def test_trajectory_equals_that_of_the_compiled_model(
    bundle: tuple[Path, deltapass.BundlePlan],
) -> None:
    loaded = deltapass.load(bundle[0])
    options = {"lowering": "eager", "order": 1, "cached_blocks": 4}
    compiled = torch.compile(TOY, backend="deltadit", options=options)
    calls = [TOY.inputs(999.0 - 90 * step, 0) for step in range(10)]
    ours, report = in_session(loaded, calls)
    theirs, _ = in_session(compiled, calls)
    assert report.as_planned
    for one, two in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, two, rtol=1e-4, atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("batch", [1, 3, 4])
def test_other_batches_equal_the_model(
    batch: int, bundle: tuple[Path, deltapass.BundlePlan]
) -> None:
    loaded = deltapass.load(bundle[0])
    (latents, timestep), _ = TOY.inputs(500.0, 3)
    latents = latents.repeat(2, 1, 1)[:batch]
    timestep = timestep.repeat(2)[:batch]
    with torch.no_grad(), deltapass.session(steps=1) as session:
        session.step(0)
        torch.testing.assert_close(
            loaded(latents, timestep), TOY(latents, timestep), rtol=1e-4, atol=1e-4
        )


@pytest.mark.slow
def test_packages_hold_no_weights(bundle: tuple[Path, deltapass.BundlePlan]) -> None:
    folder, plan = bundle
    weights = folder / "weights.safetensors"
    assert plan.weights["bytes"] <= weights.stat().st_size < 1.3 * plan.weights["bytes"] + 4096
    assert all(plan.segment(name).weights for name in ("prologue", "epilogue"))
    assert not plan.segment("delta").weights


@pytest.mark.slow
def test_device_of_another_kind_is_refused(bundle: tuple[Path, deltapass.BundlePlan]) -> None:
    with pytest.raises(OptionError, match="compiled for it"):
        deltapass.load(bundle[0], device="cuda:0")


def test_a_gpu_without_a_number_is_the_present_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 1)
    plan: Any = SimpleNamespace(build={"device": "cuda"})
    places = [AotiFormat().device(plan, given) for given in ({}, {"device": "cuda:0"})]
    assert places == [torch.device("cuda", 1), torch.device("cuda", 0)]


def test_unknown_option_is_refused_before_anything_is_compiled(tmp_path: Path) -> None:
    args, kwargs = TOY.inputs(999.0, 0)
    with pytest.raises(OptionError, match="options of this format: inductor"):
        deltapass.export(TOY, args, kwargs, tmp_path / "b", format="aoti", engine={"opset": 18})
    assert not list(tmp_path.iterdir())
