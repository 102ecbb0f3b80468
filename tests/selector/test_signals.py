"""What the implicit mode reads of a call's inputs, and notes of its results."""

from __future__ import annotations

import pytest
import torch

from deltapass.errors import StepUnknownError
from deltapass.graph.program import Input, Role, TensorSpec
from deltapass.selector.continuity import Continuity
from deltapass.selector.signals import SignalReader, signal_reader

SPEC = TensorSpec.of(torch.zeros(2))


def inputs(*roles: Role, dtype: torch.dtype = torch.float32) -> list[Input]:
    spec = TensorSpec.of(torch.zeros(2, dtype=dtype))
    return [Input(name=f"i{at}", role=role, spec=spec) for at, role in enumerate(roles)]


def reader() -> SignalReader:
    made = signal_reader(inputs(Role.SAMPLE, Role.WEIGHT, Role.TIMESTEP, Role.DATA))
    assert made is not None
    return made


def read(*arguments: torch.Tensor | None, last: Continuity | None = None) -> float:
    return reader().read(arguments, last or Continuity())[0]


def test_model_without_one_timestep_has_no_reader() -> None:
    assert signal_reader(inputs(Role.SAMPLE, Role.DATA)) is None
    assert signal_reader(inputs(Role.SAMPLE, Role.TIMESTEP, Role.TIMESTEP)) is None


def test_model_without_a_sample_is_refused() -> None:
    made = signal_reader(inputs(Role.DATA, Role.TIMESTEP))
    assert made is not None
    with pytest.raises(StepUnknownError, match="noisy sample"):
        made.read([torch.zeros(2, 4), torch.tensor(7.0)], Continuity())


@pytest.mark.parametrize(
    ("dtype", "grain"), [(torch.bfloat16, 2.0**-7), (torch.float16, 2.0**-10), (torch.int64, 0.0)]
)
def test_reader_knows_how_timesteps_are_rounded(dtype: torch.dtype, grain: float) -> None:
    made = signal_reader(inputs(Role.SAMPLE, Role.TIMESTEP, dtype=dtype))
    assert made is not None
    assert made.grain == grain


@pytest.mark.parametrize(
    "timestep", [torch.tensor(7), torch.tensor([7.0, 7.0]), torch.tensor([[0.0, 7.0], [7.0, 7.0]])]
)
def test_scalar_per_sample_and_per_token_timesteps_are_read(timestep: torch.Tensor) -> None:
    assert read(torch.zeros(2, 4), None, timestep, torch.zeros(2, 3)) == 7.0


def test_batch_at_different_timesteps_is_refused() -> None:
    with pytest.raises(StepUnknownError, match="different timesteps"):
        read(torch.zeros(2, 4), None, torch.tensor([7.0, 6.0]), torch.zeros(2, 3))


def test_one_timestep_a_token_of_many_is_the_largest() -> None:
    times = torch.full((2, 100), 7.0)
    times[0, :50] = 0.0  # tokens that are given, not generated
    assert read(torch.zeros(2, 4), None, times, torch.zeros(2, 3)) == 7.0


def test_samples_are_told_apart_and_prompts_say_nothing_about_the_step() -> None:
    last, time, text = Continuity(), torch.tensor(7.0), torch.zeros(2, 3)
    read(torch.ones(2, 4), None, time, text, last=last)
    last.accept()
    read(torch.ones(2, 4), None, time, text + 1, last=last)
    assert last.same
    read(torch.zeros(2, 4), None, time, text, last=last)
    assert not last.same


def test_tensors_of_inference_mode_are_read() -> None:
    with torch.inference_mode():
        sample, time = torch.ones(2, 4), torch.tensor(7.0)
    last = Continuity()
    for _ in range(2):
        assert read(sample, None, time, torch.zeros(2, 3), last=last) == 7.0
        last.accept()


@pytest.mark.parametrize(
    ("results", "known"),
    [
        ((torch.ones(2, 4, 8, 8),), True),
        ((torch.ones(2, 8, 8, 8),), True),
        ((3, torch.ones(2, 9), torch.ones(2, 4, 8, 8)), True),
        ((torch.ones(2, 2, 8, 8),), False),
        ((torch.ones(2, 8, 9, 8),), False),
        ((), False),
    ],
)
def test_prediction_is_the_result_like_the_sample(results: tuple[object, ...], known: bool) -> None:
    """The sample moves along it, as far as nothing else explains."""
    made, last = reader(), Continuity()
    noise = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(1))
    arguments = [noise, None, torch.tensor(7.0), torch.zeros(2, 3)]
    made.read(arguments, last)
    last.accept()
    made.note(arguments, results, last)
    arguments[0] = noise + 2
    _, products = made.read(arguments, last)
    assert last.follows(products, None) is known
