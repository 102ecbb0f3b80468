"""Sizes that vary: a bundle gives what the model gives at every size, or the export is refused."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from models import Conditioning, D, mlp, noise, randomise
from models.adaln import ClippedDenoiser
from torch import Tensor, nn
from torch.export import Dim

pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")

import deltapass
from deltapass.errors import DynamicShapeError, ExportError, MutationError

TOKENS, FEATURES, TABLE = 16, 4, 64
RUNNER = Path(__file__).parents[2] / "build" / "runner" / "runner"


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.mlp = mlp()

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        return x + self.mlp(x * (1 + condition[:, None]))


class Tokens(nn.Module):
    """Two blocks on tokens (B, T, 4); subclasses change what comes in or goes out."""

    def __init__(self) -> None:
        super().__init__()
        self.into, self.condition, self.out = nn.Linear(4, D), Conditioning(), nn.Linear(D, 4)
        self.blocks = nn.ModuleList(Block() for _ in range(2))
        self.register_buffer("table", noise(7, TABLE, D))

    def entered(self, sample: Tensor) -> Tensor:
        return self.into(sample)

    def forward(self, sample: Tensor, timestep: Tensor) -> Any:
        x, condition = self.entered(sample), self.condition(timestep)
        for block in self.blocks:
            x = block(x, condition)
        return self.out(x)


class Crop(Tokens):
    """The centre of a table of positions, as SD3 takes it: the dividend is negative in part."""

    def entered(self, sample: Tensor) -> Tensor:
        tokens = sample.shape[1]
        places = torch.arange(tokens) + (TABLE - tokens) // 2
        return self.into(sample) + self.table[places]


class Ceil(Tokens):
    """A quotient rounded up."""

    def entered(self, sample: Tensor) -> Tensor:
        half = -(-sample.shape[1] // 2)
        return self.into(sample) + self.table[:half].sum(0)


class Pairs(Tokens):
    """Takes an even number of tokens."""

    def entered(self, sample: Tensor) -> Tensor:
        return self.into(sample.unflatten(1, (-1, 2)).flip(2).flatten(1, 2))


class Alone(Tokens):
    """Treats one sample alone in another way."""

    def entered(self, sample: Tensor) -> Tensor:
        return self.into(sample * 2 if sample.shape[0] == 1 else sample)


class Few(Tokens):
    """Fails with few tokens, of which torch.export knows nothing."""

    def entered(self, sample: Tensor) -> Tensor:
        if not torch.compiler.is_exporting() and sample.shape[1] < 6:
            raise ValueError("at least six tokens")
        return self.into(sample)


class Counted(Tokens):
    """Also returns how many tokens there are."""

    def forward(self, sample: Tensor, timestep: Tensor) -> Any:
        return super().forward(sample, timestep), sample.shape[0] * sample.shape[1]


class Squeezed(Tokens):
    """Squeezes a dimension that varies, which does nothing, together with one that is 1."""

    def entered(self, sample: Tensor) -> Tensor:
        return self.into(torch.squeeze(sample.unsqueeze(2), (1, 2)).squeeze(1))


class Counting(Tokens):
    """Counts its calls in a buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("calls", torch.zeros(1))

    def entered(self, sample: Tensor) -> Tensor:
        self.calls.add_(1)
        return super().entered(sample)


def inputs(tokens: int = TOKENS, batch: int = 2) -> tuple[Tensor, Tensor]:
    return noise(3, batch, tokens, FEATURES), torch.full((batch,), 500.0)


def export(kind: type[Tokens], folder: Path, **options: Any) -> tuple[nn.Module, Path]:
    model = randomise(kind()).eval().requires_grad_(False)
    chosen = {"cached_blocks": 1, "steps": 4, **options}
    deltapass.export(model, inputs(), {}, folder / "bundle", **chosen)
    return model, folder / "bundle"


def tokens_vary(dim: Any = None) -> dict[str, Any]:
    return {"dynamic_shapes": {"sample": {1: dim or Dim("tokens", min=4, max=60)}}}


def same_at(model: nn.Module, folder: Path, sizes: tuple[int, ...]) -> None:
    loaded = deltapass.load(folder)
    for size in sizes:
        with torch.no_grad(), deltapass.session(1) as session:
            session.step(0)
            torch.testing.assert_close(
                loaded(*inputs(size)), model(*inputs(size)), rtol=1e-4, atol=1e-4
            )


@pytest.mark.parametrize("kind", [Crop, Ceil])
def test_quotients_of_negative_numbers_are_rounded_down(kind: type[Tokens], tmp_path: Path) -> None:
    model, folder = export(kind, tmp_path, verify=False, **tokens_vary())
    same_at(model, folder, (4, 8, 17, 21, 33, 60))


def test_an_odd_size_is_verified(tmp_path: Path) -> None:
    _, folder = export(Tokens, tmp_path, **tokens_vary())
    verified = deltapass.load(folder).plan.verified or {}
    assert {"tokens=16", "tokens=8", "tokens=32", "tokens=17"} <= set(verified["sizes"])


def test_a_multiple_of_a_named_dimension(tmp_path: Path) -> None:
    half = Dim("half", min=2, max=30)
    model, folder = export(Pairs, tmp_path, **tokens_vary(2 * half))
    same_at(model, folder, (4, 16, 26, 60))


@pytest.mark.skipif(not RUNNER.is_file(), reason="`make runner` has not built it")
def test_a_multiple_of_a_named_dimension_in_the_runner(tmp_path: Path) -> None:
    from deltapass.exporting.trajectory_file import LinearSampler, write_trajectory

    safetensors = pytest.importorskip("safetensors.torch")
    _, folder = export(Pairs, tmp_path, **tokens_vary(2 * Dim("half", min=2, max=30)))
    given, result = tmp_path / "in.safetensors", tmp_path / "out.safetensors"
    times, sample = torch.tensor([900.0, 700.0, 500.0, 300.0]), inputs(26)[0]
    euler = LinearSampler(
        timesteps=times, sample=torch.ones(4), output=-0.1 * torch.eye(4)[[0] * 4]
    )
    write_trajectory(given, sample, euler, {})
    done = subprocess.run([RUNNER, folder, given, result, "--threads", "1"], check=False)
    assert done.returncode == 0
    loaded = deltapass.load(folder, threads=1)
    with torch.no_grad(), deltapass.session(4) as session:
        for step, time in enumerate(times):
            session.step(step)
            sample = sample + -0.1 * loaded(sample, time.expand(2).contiguous())
    assert np.array_equal(safetensors.load_file(result)["sample"].numpy(), sample.numpy())


def test_one_sample_is_compared_where_it_is_taken(tmp_path: Path) -> None:
    model = randomise(Alone()).eval()
    with pytest.raises(
        DynamicShapeError, match=r"for batch != 1 alone; batch=1 lies in the ranges"
    ):
        deltapass.export(model, inputs(batch=4), {}, tmp_path / "b", cached_blocks=1, batch=(1, 8))
    deltapass.export(model, inputs(batch=4), {}, tmp_path / "b", cached_blocks=1, batch=(2, 8))


def test_a_size_at_which_the_model_fails_is_named(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="itself fails for tokens=1: ValueError: at least six"):
        export(Few, tmp_path, **tokens_vary(Dim("tokens", min=1, max=60)))
    assert not list(tmp_path.iterdir())


def test_a_returned_number_that_varies_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="a number that varies with a size"):
        export(Counted, tmp_path, **tokens_vary())
    export(Counted, tmp_path)
    assert deltapass.load(tmp_path / "bundle")(*inputs())[1] == 2 * TOKENS


def test_a_squeeze_of_what_varies_does_nothing(tmp_path: Path) -> None:
    model, folder = export(Squeezed, tmp_path, **tokens_vary())
    same_at(model, folder, (4, 17))


@pytest.mark.parametrize("options", [{}, {"batch": (1, 4)}])
def test_a_buffer_that_the_model_writes_is_refused(options: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(MutationError):
        export(Counting, tmp_path, **options)


def test_all_values_of_a_segment_lie_on_one_device() -> None:
    from deltapass.exporting.prepare import prepare
    from deltapass.exporting.trace import export_graph
    from deltapass.options import parse_options

    model = randomise(Tokens()).eval().to("meta")
    call = [tensor.to("meta") for tensor in inputs()]
    options = parse_options({"order": 1, "steps": 6, "cached_blocks": 1})
    made = prepare(export_graph(model, call, {}), options)
    predicts = [s for s in made.chains.segments if "weights" in s.values]
    assert predicts
    for segment in predicts:
        assert {value.device.type for value in segment.values.values()} == {"meta"}


@pytest.mark.parametrize("order", [0, 1])
def test_buffers_of_a_float16_model_are_float32(order: int) -> None:
    from deltapass.exporting.prepare import prepare
    from deltapass.exporting.trace import export_graph
    from deltapass.options import parse_options

    model = randomise(ClippedDenoiser(depth=4, swing=1.0)).half()
    args, _ = model.inputs(500.0)
    options = parse_options({"order": order, "steps": 6, "cached_blocks": 2})
    made = prepare(export_graph(model, args, {}), options)
    buffers = {name: v for name, v in made.chains.example.items() if name.startswith("delta")}
    assert len(buffers) == 2 * (order + 1)
    assert {value.dtype for value in buffers.values()} == {torch.float32}
    sizes = {value.nbytes for value in buffers.values()}
    assert sizes == {spanned.nbytes for spanned in made.planned.spans.values()}
    for segment in made.chains.segments:  # each file takes and gives what the plan says
        if segment.name.startswith(("delta", "predict")):
            (result,) = (segment.values[name] for name in segment.outputs)
            wide = torch.float32 if segment.name.startswith("delta") else torch.float16
            assert result.dtype == wide


def test_plain_json(tmp_path: Path) -> None:
    _, folder = export(Tokens, tmp_path, verify=False, **tokens_vary())
    json.loads((folder / "plan.json").read_text(), parse_constant=pytest.fail)
