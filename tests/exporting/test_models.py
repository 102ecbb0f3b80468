"""Models unlike the others: each was once exported wrongly, or not at all."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")

import deltapass
from deltapass.errors import BundleError, ExportError, LoweringError, StateError

D, C = 8, 4


class Block(nn.Module):
    """Mixes along rows, or along columns: two sizes that one example may not tell apart."""

    def __init__(self, turned: bool) -> None:
        super().__init__()
        self.turned, self.linear = turned, nn.Linear(D, D)

    def forward(self, x: Tensor, height: int, width: int) -> Tensor:
        sizes = (width, height) if self.turned else (height, width)
        mixed = x.unflatten(1, sizes).cumsum(1).flatten(1, 2)
        return x + 0.1 * torch.tanh(self.linear(mixed))


class Image(nn.Module):
    """Four blocks on the pixels of an image (B, C, H, W)."""

    def __init__(self) -> None:
        super().__init__()
        self.into, self.out = nn.Linear(C, D), nn.Linear(D, C)
        self.blocks = nn.ModuleList(Block(turned=number % 2 > 0) for number in range(4))
        self.register_buffer("constant_0", torch.linspace(0, 1, D))  # as folded constants are named
        self.plain = torch.linspace(1, 2, D)  # neither parameter nor buffer
        self.tied = self.out

    def forward(self, sample: Tensor, timestep: Tensor) -> Tensor:
        height, width = sample.shape[2:]
        frequencies = torch.exp(-torch.arange(D) / D)
        time = torch.sin(timestep.float()[:, None] * frequencies)[:, None].to(sample.dtype)
        x = self.into(sample.flatten(2).transpose(1, 2)) + time + self.constant_0
        for block in self.blocks:
            x = block(x, height, width)
        x = self.out(x * self.plain) + self.tied(x)
        return x.transpose(1, 2).unflatten(2, (height, width))


def image(seed: int = 0) -> Image:
    torch.manual_seed(seed)
    return Image().eval().requires_grad_(False)


def call(height: int = 6, width: int = 6) -> tuple[Tensor, Tensor]:
    return torch.randn(2, C, height, width), torch.full((2,), 500.0)


def export(folder: Path, model: nn.Module, args: Any, **options: Any) -> deltapass.BundlePlan:
    return deltapass.export(model, args, {}, folder / "b", cached_blocks=2, **options)


def full(folder: Path, args: Any) -> Tensor:
    loaded = deltapass.load(folder / "b")
    with torch.no_grad(), deltapass.session(1) as session:
        session.step(0)
        return loaded(*args)


@pytest.fixture(scope="module")
def moving(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Image]:
    """Height and width vary apart, and are equal in the example."""
    folder, model = tmp_path_factory.mktemp("moving"), image()
    height, width = (torch.export.Dim(name, min=2, max=16) for name in ("height", "width"))
    export(folder, model, call(), dynamic_shapes={"sample": {2: height, 3: width}})
    return folder, model


@pytest.mark.parametrize(("height", "width"), [(6, 6), (4, 12), (12, 4), (2, 3)])
def test_dimensions_of_one_size_in_the_example_stay_two(
    height: int, width: int, moving: tuple[Path, Image]
) -> None:
    args = call(height, width)
    with torch.no_grad():
        torch.testing.assert_close(full(moving[0], args), moving[1](*args), rtol=1e-4, atol=1e-4)


def test_sizes_are_verified_apart(moving: tuple[Path, Image]) -> None:
    verified = deltapass.load(moving[0] / "b").plan.verified or {}
    sizes = {name.split(", without")[0] for name in verified["sizes"]}
    assert {"height=3, width=12", "height=12, width=3", "height=6, width=6"} <= sizes


def test_tied_weights_are_those_of_the_model(moving: tuple[Path, Image]) -> None:
    assert deltapass.load(moving[0] / "b", model=moving[1]).dtype is torch.float32


@pytest.mark.parametrize("name", ["plain", "constant_0"])
def test_any_tensor_of_the_model_counts_as_a_weight(name: str, moving: tuple[Path, Image]) -> None:
    other = image()
    setattr(other, name, getattr(other, name) + 1)
    with pytest.raises(BundleError, match="the weights differ"):
        deltapass.load(moving[0] / "b", model=other)


def test_copies_share_the_engines_and_pickles_are_refused(moving: tuple[Path, Image]) -> None:
    import copy
    import pickle

    loaded = deltapass.load(moving[0] / "b")
    assert copy.deepcopy(loaded) is loaded and copy.copy(loaded) is loaded
    with pytest.raises(StateError, match="Load it in each process"):
        pickle.dumps(loaded)


def test_a_compiled_model_is_exported_as_what_it_wraps(tmp_path: Path) -> None:
    model = image()
    compiled = torch.compile(model, backend="eager")
    export(tmp_path, compiled, call(), verify=False)
    assert deltapass.load(tmp_path / "b", model=model).plan.blocks == 4


class Structured(Image):
    """Is given a tuple and a dictionary with a number as key, and insists on them."""

    def forward(self, sample: Tensor, timestep: Tensor, axes: Any, extra: Any) -> Tensor:
        assert isinstance(axes, tuple)
        return super().forward(sample + extra[0].mean(axes, keepdim=True), timestep)


def test_verification_calls_the_model_as_the_example_did(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, extra = Structured().eval(), {0: torch.ones(2, C, 6, 6)}
    plan = export(tmp_path, model, (*call(), (2, 3), extra), batch=(1, 4))
    assert {"batch=1", "batch=4"} <= set((plan.verified or {})["sizes"])


def test_exports_in_threads_take_turns(tmp_path: Path) -> None:
    failed: list[BaseException] = []
    models = [image(number) for number in range(2)]

    def run(number: int) -> None:
        try:
            (tmp_path / str(number)).mkdir()
            export(tmp_path / str(number), models[number], call(), verify=False)
        except BaseException as error:  # noqa: BLE001 - asserted below
            failed.append(error)

    threads = [threading.Thread(target=run, args=(number,)) for number in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed
    args = call()
    with torch.no_grad():
        wanted = models[1](*args)
    assert type(wanted) is Tensor
    torch.testing.assert_close(full(tmp_path / "1", args), wanted, rtol=1e-4, atol=1e-4)


# ---- refused ------------------------------------------------------------------------------------


class GivesBuffer(Image):
    def forward(self, sample: Tensor, timestep: Tensor) -> Any:
        return super().forward(sample, timestep), self.constant_0


class TakesShorts(Image):
    def forward(self, sample: Tensor, timestep: Tensor, labels: Tensor) -> Tensor:
        return super().forward(sample, timestep) + labels.float()[:, None, None, None]


def test_a_model_that_returns_a_weight_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="returns its own"):
        export(tmp_path, GivesBuffer().eval(), call())
    assert not list(tmp_path.iterdir())


def test_a_type_that_onnx_runtime_lacks_is_named(tmp_path: Path) -> None:
    args = (*call(), torch.ones(2, dtype=torch.int16))
    with pytest.raises(LoweringError, match=r"labels is torch.int16, which it lacks"):
        export(tmp_path, TakesShorts().eval(), args)


def test_training_mode_and_functions_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=r"Call model.eval\(\) first"):
        export(tmp_path, Image(), call())
    with pytest.raises(ExportError, match=r"Export a torch\.nn\.Module"):
        export(tmp_path, lambda x, t: x, call())  # type: ignore[arg-type]


def test_bfloat16_is_written_though_the_cpu_cannot_run_it(tmp_path: Path) -> None:
    model = image().to(torch.bfloat16)
    model.plain = model.plain.to(torch.bfloat16)
    sample, timestep = call()
    args = (sample.to(torch.bfloat16), timestep)
    export(tmp_path, model, args, verify=False)
    with pytest.raises(BundleError, match="bfloat16 above all"):
        deltapass.load(tmp_path / "b")
