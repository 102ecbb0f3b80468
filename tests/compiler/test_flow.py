"""compiler/flow.py: only residual blocks on the sample that do most of the work are a stack."""

from __future__ import annotations

from collections.abc import Callable

import models
import pytest
import torch
from blocks_case import Residual, names, stack_of, stripped, traced
from models import AdaLNBlock, AdaLNDenoiser, C, D, Denoiser, noise
from models.streams import Call
from torch import Tensor, nn
from torch.nn import functional as F

import deltapass
from deltapass.compiler.blocks import find_blocks
from deltapass.errors import NoBlocksError

BLOCKS = ["blocks.0", "blocks.1", "blocks.2"]


class Trunk(AdaLNDenoiser):
    """A denoiser whose trunk is given, and may be nothing that can be cached."""

    def __init__(self, trunk: nn.Module, width: int = D) -> None:
        super().__init__(depth=0)
        self.trunk = trunk

    def forward(self, hidden_states: Tensor, timestep: Tensor) -> Tensor:
        x, conditioning = self.embedding(hidden_states), self.conditioning(timestep)
        return self.head(self.trunk(x + conditioning[:, None]), conditioning)


class OutProjection(nn.Module):
    """Attention in the manner of U-Nets: its layers are numbered, its block has no like."""

    def __init__(self) -> None:
        super().__init__()
        self.to_qkv = nn.Linear(D, 3 * D)
        self.to_out = nn.ModuleList([nn.Linear(D, D), nn.Dropout(0.0), nn.Linear(D, D)])

    def forward(self, x: Tensor) -> Tensor:
        attended = F.scaled_dot_product_attention(*self.to_qkv(F.layer_norm(x, (D,))).chunk(3, -1))
        for layer in self.to_out:
            attended = layer(attended)
        return x + attended


def plain_layers() -> nn.Module:
    """Numbered, of one width, most of the work; but no residual."""
    return nn.Sequential(*(layer for _ in range(6) for layer in (nn.Linear(D, D), nn.SiLU())))


def gated() -> nn.Module:
    """Repeated operations that scale their input, and add nothing onto it."""

    class Gate(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.gate = nn.Linear(D, D)

        def forward(self, x: Tensor) -> Tensor:
            return x * torch.sigmoid(self.gate(x))

    return nn.Sequential(Gate(), Gate(), Gate(), Gate())


def one_giant() -> nn.Module:
    return nn.Sequential(Residual(D, 1), Residual(D, 40), Residual(D, 1))


NO_STACKS: dict[str, Callable[[], nn.Module]] = {
    "plain layers": plain_layers,
    "gates": gated,
    "an attention's projections": OutProjection,
    "one giant block": one_giant,
}


@pytest.mark.parametrize("name", NO_STACKS)
@pytest.mark.parametrize("bare", [False, True], ids=["with modules", "without"])
def test_what_is_no_residual_stack_is_refused(name: str, bare: bool) -> None:
    model = Trunk(NO_STACKS[name]())
    with pytest.raises(NoBlocksError, match="no stack of repeated blocks"):
        find_blocks(stripped(traced(model))) if bare else stack_of(model)


def test_it_is_refused_in_strict_and_runs_in_full_otherwise() -> None:
    model = models.randomise(Trunk(plain_layers()))
    args, kwargs = model.inputs(500.0)
    report = deltapass.explain(model, *args, **kwargs)
    assert report.refusal is not None
    assert "no stack of repeated blocks" in report.refusal
    with pytest.raises(NoBlocksError):
        deltapass.explain(model, *args, options={"strict": True}, **kwargs)


class Aside(AdaLNDenoiser):
    """Three blocks on the sample, and residual layers on something else, `wide` and `deep`."""

    def __init__(self, wide: int, deep: int) -> None:
        super().__init__(depth=3)
        self.enter, self.leave = nn.Linear(D, wide), nn.Linear(wide, D)
        self.aside = nn.Sequential(*(Residual(wide) for _ in range(deep)))

    def forward(self, hidden_states: Tensor, timestep: Tensor) -> Tensor:
        x, conditioning = self.embedding(hidden_states), self.conditioning(timestep)
        conditioning = conditioning + self.leave(self.aside(self.enter(conditioning)))
        for block in self.blocks:
            x = block(x, conditioning)
        return self.head(x, conditioning)


@pytest.mark.parametrize("bare", [False, True], ids=["with modules", "without"])
def test_residual_layers_on_the_timestep_are_not_the_stack(bare: bool) -> None:
    small, large = Aside(D, 4), Aside(128, 40)
    find = (lambda m: find_blocks(stripped(traced(m)))) if bare else stack_of
    assert len(find(small)) == 3
    assert bare or names(find(small)) == BLOCKS
    # Most of the model's work, but not the sample's.
    says = "carry no stream of the noisy sample" if bare else r"blocks\.2,.* hold \d+\.\d% of its"
    with pytest.raises(NoBlocksError, match=says):
        find(large)


class Refined(models.parts.TextDenoiser):
    """Blocks that refine the text, and then the image, before the two are one stream."""

    def __init__(self, refiners: int = 2, depth: int = 3) -> None:
        super().__init__()
        self.embedding, self.conditioning = nn.Linear(C, D), models.parts.Conditioning()
        self.text_refiner = nn.ModuleList(Residual() for _ in range(refiners))
        self.image_refiner = nn.ModuleList(Residual() for _ in range(refiners))
        self.blocks = nn.ModuleList(AdaLNBlock() for _ in range(depth))
        self.out = nn.Linear(D, C)

    def forward(
        self, hidden_states: Tensor, timestep: Tensor, encoder_hidden_states: Tensor
    ) -> Tensor:
        x, text = self.embedding(hidden_states), encoder_hidden_states
        conditioning = self.conditioning(timestep)
        for refiner in self.text_refiner:
            text = refiner(text)
        for refiner in self.image_refiner:
            x = refiner(x)
        x = torch.cat([text, x], dim=1)
        for block in self.blocks:
            x = block(x, conditioning)
        return self.out(x[:, text.shape[1] :])


def test_refiners_before_the_stack_are_no_part_of_it() -> None:
    assert names(stack_of(Refined())) == BLOCKS


class Embedded(AdaLNDenoiser):
    """Pixels through `layers` residual convolutions before they are tokens."""

    def __init__(self, layers: int) -> None:
        super().__init__(depth=3)
        self.convolutions = nn.ModuleList(nn.Conv1d(C, C, 3, padding=1) for _ in range(layers))

    def forward(self, hidden_states: Tensor, timestep: Tensor) -> Tensor:
        x = hidden_states.transpose(1, 2)
        for convolution in self.convolutions:
            x = x + torch.tanh(convolution(x))
        return super().forward(x.transpose(1, 2), timestep)


def test_an_embedder_of_many_convolutions_is_not_the_stack() -> None:
    assert names(stack_of(Embedded(20))) == BLOCKS


def test_a_stack_that_is_a_small_part_of_the_model_is_refused_with_its_share() -> None:
    model = AdaLNDenoiser(depth=3)
    model.embedding = nn.Sequential(nn.Linear(C, 999), nn.SiLU(), nn.Linear(999, D))  # type: ignore
    with pytest.raises(NoBlocksError, match=r"blocks\.0 \.\. blocks\.2,.* hold \d\d\.\d% of its M"):
        stack_of(model)


class PostNorm(nn.Module):
    """Ends with a norm: its output is no sum, but one was made within."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(D, D)

    def forward(self, x: Tensor, conditioning: Tensor) -> Tensor:
        return F.layer_norm(x + torch.tanh(self.layer(x + conditioning[:, None])), (D,))


def test_blocks_that_end_with_a_norm_are_a_stack() -> None:
    model = AdaLNDenoiser(depth=0)
    model.blocks = nn.ModuleList(PostNorm() for _ in range(3))
    assert names(stack_of(model)) == BLOCKS


class Unlike(Denoiser):
    """Gives another shape than it takes, so that none of its inputs looks like the sample."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = AdaLNDenoiser(depth=3)

    def forward(self, hidden_states: Tensor, timestep: Tensor) -> Tensor:
        return self.inner(hidden_states, timestep).mean(dim=1)

    def inputs(self, timestep: float, seed: int = 0) -> Call:
        return (noise(seed, 2, 16, C), torch.full((2,), timestep)), {}


def test_a_stack_is_found_where_no_input_is_known_to_be_the_sample() -> None:
    assert names(stack_of(Unlike())) == BLOCKS
