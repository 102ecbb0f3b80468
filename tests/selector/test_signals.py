"""What the implicit mode reads of a call's inputs."""

from __future__ import annotations

import pytest
import torch

from deltapass.errors import StepUnknownError
from deltapass.graph.program import Input, Role, TensorSpec
from deltapass.selector.signals import SignalReader, signal_reader

SPEC = TensorSpec.of(torch.zeros(2))


def inputs(*roles: Role) -> list[Input]:
    return [Input(name=f"i{at}", role=role, spec=SPEC) for at, role in enumerate(roles)]


def reader() -> SignalReader:
    made = signal_reader(inputs(Role.SAMPLE, Role.WEIGHT, Role.TIMESTEP, Role.DATA))
    assert made is not None
    return made


def test_model_without_a_timestep_has_no_reader() -> None:
    assert signal_reader(inputs(Role.SAMPLE, Role.DATA)) is None
    assert signal_reader(inputs(Role.TIMESTEP, Role.TIMESTEP)) is None


@pytest.mark.parametrize(
    "timestep", [torch.tensor(7), torch.tensor([7.0, 7.0]), torch.tensor([[0.0, 7.0], [7.0, 7.0]])]
)
def test_scalar_per_sample_and_per_token_timesteps_are_read(timestep: torch.Tensor) -> None:
    signals = reader().read([torch.zeros(2, 4), None, timestep, torch.zeros(2, 3)])
    assert signals.timestep == 7.0


def test_batch_at_different_timesteps_is_refused() -> None:
    with pytest.raises(StepUnknownError, match="different timesteps"):
        reader().read([torch.zeros(2, 4), None, torch.tensor([7.0, 6.0]), torch.zeros(2, 3)])


def test_samples_are_told_apart_and_prompts_say_nothing_about_the_step() -> None:
    read = reader()
    time, text = torch.tensor(7.0), torch.zeros(2, 3)
    one = read.read([torch.zeros(2, 4), None, time, text])
    other = read.read([torch.ones(2, 4), None, time, text])
    prompted = read.read([torch.zeros(2, 4), None, time, text + 1])
    assert one.sample != other.sample
    assert one == prompted


def test_sample_changed_in_place_is_read_again() -> None:
    read, sample = reader(), torch.zeros(2, 4)
    arguments = [sample, None, torch.tensor(7.0), torch.zeros(2, 3)]
    before = read.read(arguments)
    sample.add_(1)
    assert read.read(arguments).sample != before.sample


def test_tensors_of_inference_mode_are_read() -> None:
    with torch.inference_mode():
        sample, time = torch.ones(2, 4), torch.tensor(7.0)
    read = reader()
    arguments = [sample, None, time, torch.zeros(2, 3)]
    before = read.read(arguments)
    assert read.read(arguments) == before
    assert before.timestep == 7.0
    assert len(before.sample) == 8


def test_model_without_a_sample_has_no_fingerprint() -> None:
    made = signal_reader(inputs(Role.DATA, Role.TIMESTEP))
    assert made == SignalReader(timestep=1, samples=())
    assert made.read([torch.zeros(2, 4), torch.tensor(7.0)]).sample == ()


def test_one_timestep_a_token_of_many_is_the_largest() -> None:
    times = torch.full((2, 100), 7.0)
    times[0, :50] = 0.0  # tokens that are given, not generated
    signals = reader().read([torch.zeros(2, 4), None, times, torch.zeros(2, 3)])
    assert signals.timestep == 7.0
