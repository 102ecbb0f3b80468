"""What the implicit mode reads of a call's inputs."""

from __future__ import annotations

import pytest
import torch

from deltapass.errors import StepUnknownError
from deltapass.graphs import Input, Role, TensorSpec
from deltapass.signals import SignalReader, signal_reader

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


def test_fingerprints_tell_samples_and_prompts_apart() -> None:
    read = reader()
    time, text = torch.tensor(7.0), torch.zeros(2, 3)
    one = read.read([torch.zeros(2, 4), None, time, text])
    other = read.read([torch.ones(2, 4), None, time, text])
    prompted = read.read([torch.zeros(2, 4), None, time, text + 1])
    assert one.sample != other.sample
    assert one.sample == prompted.sample
    assert one.conditioning != prompted.conditioning


def test_changed_in_place_conditioning_is_read_again() -> None:
    read = reader()
    text = torch.zeros(2, 3)
    arguments = [torch.zeros(2, 4), None, torch.tensor(7.0), text]
    before = read.read(arguments)
    text.add_(1)
    assert read.read(arguments).conditioning != before.conditioning


def test_tensors_of_inference_mode_are_read() -> None:
    with torch.inference_mode():
        text = torch.ones(2, 3)
    read = reader()
    arguments = [torch.zeros(2, 4), None, torch.tensor(7.0), text]
    assert read.read(arguments) == read.read(arguments)
