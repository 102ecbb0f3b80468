"""What was written is run and compared: one wrong weight and the bundle is not kept."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from models import make, noise

import deltapass
from deltapass.bundles.weights_file import TensorStore
from deltapass.errors import VerificationError
from deltapass.exporting.compare import TOLERANCES, relative_error, resized

NAN, INFINITE = float("nan"), float("inf")


def test_one_wrong_weight_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for library in ("onnx", "onnxscript", "onnxruntime", "safetensors"):
        pytest.importorskip(library)
    model = make("adaln", depth=2)
    weight = dict(model.named_parameters())["blocks.1.mlp.0.weight"]
    add, altered = TensorStore.add, []

    def wrong(self: TensorStore, stored: str, tensor: torch.Tensor) -> str:
        if tensor.shape in (weight.shape, weight.t().shape) and (
            torch.equal(tensor, weight) or torch.equal(tensor, weight.t())
        ):
            tensor = tensor.clone()
            tensor[0, 0] += 0.05
            altered.append(stored)
        return add(self, stored, tensor)

    monkeypatch.setattr(TensorStore, "add", wrong)
    options: dict[str, Any] = {"cached_blocks": 1, "boundary": 1.0}
    with pytest.raises(VerificationError, match=r"segment 'blocks_1_2' differs from the model"):
        deltapass.export(model, *model.inputs(1.0), tmp_path / "bundle", **options)
    assert altered and not list(tmp_path.iterdir())


# ---- the measure -------------------------------------------------------------------------------


def test_an_error_is_measured_against_the_largest_value() -> None:
    wanted = torch.tensor([100.0, 1.0])
    assert relative_error([wanted + torch.tensor([0.0, 0.5])], [wanted]) == pytest.approx(0.005)
    assert relative_error([wanted], [wanted]) == 0.0
    assert relative_error([], []) == 0.0


def test_the_worst_of_several_results_counts() -> None:
    one = torch.ones(2)
    assert relative_error([one, one * 1.5, one], [one, one, one]) == pytest.approx(0.5)


def test_what_is_no_tensor_is_not_compared() -> None:
    assert relative_error([None, 3, torch.ones(1)], [None, 4, torch.ones(1)]) == 0.0
    assert relative_error([torch.ones(0)], [torch.ones(0)]) == 0.0


@pytest.mark.parametrize("bad", [NAN, INFINITE, -INFINITE])
@pytest.mark.parametrize("place", [0, 1])
def test_what_is_no_number_is_never_right(bad: float, place: int) -> None:
    given = [torch.ones(3), torch.ones(3)]
    given[place] = torch.tensor([1.0, bad, 1.0])
    error = relative_error(given, [torch.ones(3), torch.ones(3)])
    assert not error <= max(TOLERANCES.values())


def test_what_is_no_number_in_the_model_either_is_no_difference() -> None:
    both = torch.tensor([1.0, NAN])
    assert relative_error([both], [both.clone()]) == 0.0
    assert not relative_error([both], [both.flip(0)]) <= 1.0


def test_all_zeros_are_compared_too() -> None:
    assert relative_error([torch.zeros(3)], [torch.zeros(3)]) == 0.0
    assert relative_error([torch.full((3,), 1e-6)], [torch.zeros(3)]) > 1.0


def test_whole_numbers_and_half_precision_are_compared_as_numbers() -> None:
    whole = torch.tensor([1000, -7])
    assert relative_error([whole], [whole]) == 0.0
    assert relative_error([whole + 1], [whole]) == pytest.approx(1e-3)
    assert relative_error([torch.tensor([True])], [torch.tensor([False])]) > 1.0
    half = torch.tensor([2048.0], dtype=torch.float16)
    assert relative_error([half + 2], [half]) == pytest.approx(2 / 2048)


def test_another_number_of_results_is_an_error() -> None:
    with pytest.raises(ValueError, match="argument"):
        relative_error([torch.ones(1)], [torch.ones(1), torch.ones(1)])


@pytest.mark.parametrize("shape", [(1, 3, 4), (5, 3, 4), (2, 7, 1), (2, 3, 4)])
def test_an_example_is_repeated_or_cut_to_a_size(shape: tuple[int, ...]) -> None:
    example = noise(0, 2, 3, 4)
    made = resized(example, shape)
    assert made.shape == shape and made.is_contiguous()
    assert set(made.flatten().tolist()) <= set(example.flatten().tolist())
    assert torch.equal(made[0, 0, 0], example[0, 0, 0])
