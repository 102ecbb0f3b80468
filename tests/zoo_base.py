"""What the pipelines of the zoo share: the request, the zoo itself, text, and a tiny VAE.

Import this module only behind `pytest.importorskip("diffusers")` and `"transformers"`: pipelines
need both.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from diffusers import AutoencoderKL
from models import noise, randomise
from reference import Streams
from torch import Tensor, nn

TEXT, WIDTH, LATENT = 6, 32, 8
VAE_SCALE = 2  # pixels to a latent of `tiny_vae`
PROMPT, NEGATIVE, POOLED, IMAGE = 1_000, 2_000, 3_000, 4_000  # seeds of the inputs


@dataclass(frozen=True)
class Request:
    """What one call of a pipeline asks for. Each prompt gives one image.

    `size` is the height and width of the latent; `guidance` 1.0 turns classifier-free guidance off
    (where guidance is an input of the model it is only another value); `prompt` chooses the text.
    """

    steps: int = 6
    batch: int = 1
    size: int = LATENT
    guidance: float = 4.0
    seed: int = 0
    prompt: int = 0
    strength: float = 1.0  # of image-to-image: the share of the steps that is run

    def text(self) -> Tensor:
        return noise(PROMPT + self.prompt, self.batch, TEXT, WIDTH)

    def negative(self) -> Tensor:
        return noise(NEGATIVE, self.batch, TEXT, WIDTH)

    def pooled(self, *, negative: bool = False) -> Tensor:
        seed = NEGATIVE if negative else PROMPT + self.prompt
        return noise(POOLED + seed, self.batch, WIDTH)

    def mask(self, *, negative: bool = False) -> Tensor:
        """Ones for tokens that count; the last ones do not, more of them in the negative."""
        mask = torch.ones(self.batch, TEXT, dtype=torch.int64)
        mask[:, TEXT - (3 if negative else 1) :] = 0
        return mask

    def image(self) -> Tensor:
        """An image to start from or to be controlled by, in [0, 1]."""
        pixels = self.size * VAE_SCALE
        return noise(IMAGE, self.batch, 3, pixels, pixels).sigmoid()

    def common(self, scale: int = VAE_SCALE) -> dict[str, Any]:
        """The arguments that all pipelines but DiT's take; `scale` pixels to a latent."""
        return {
            "height": self.size * scale,
            "width": self.size * scale,
            "num_inference_steps": self.steps,
            "generator": torch.Generator().manual_seed(self.seed),
            "output_type": "latent",
        }


@dataclass(frozen=True)
class Zoo:
    """A pipeline of diffusers with tiny random components, and how to call it.

    Overrides are fields of `Request`; those in `fixed` this pipeline cannot vary. `denoiser` stays
    the plain module whatever is put into `pipe.transformer`.
    """

    name: str
    pipe: Any
    denoiser: nn.Module
    blocks: tuple[nn.Module, ...]
    streams: Streams
    arguments: Callable[[Request], dict[str, Any]]
    defaults: Request = Request()
    fixed: tuple[str, ...] = ("strength",)
    separate: bool = (
        False  # guidance calls the denoiser twice a step: with the prompt, then without
    )

    def __post_init__(self) -> None:
        self.pipe.set_progress_bar_config(disable=True)

    @property
    def steps_default(self) -> int:
        return self.defaults.steps

    def request(self, **overrides: Any) -> Request:
        if refused := set(overrides) & set(self.fixed):
            raise ValueError(f"{self.name} has no choice of {sorted(refused)}")
        return replace(self.defaults, **overrides)

    def call(self, **overrides: Any) -> dict[str, Any]:
        """Arguments for `pipe`, with a generator of their own: use them for one call only."""
        return self.arguments(self.request(**overrides))

    def run(self, **overrides: Any) -> Tensor:
        """Latents; DiT's pipeline always decodes, and gives images."""
        return self.pipe(**self.call(**overrides))[0]

    def branches(self, **overrides: Any) -> int:
        """Calls of the denoiser a step."""
        return 2 if self.separate and self.request(**overrides).guidance > 1 else 1

    def start(self, **overrides: Any) -> int:
        """Index in `pipe.scheduler.timesteps` of the first step that is run."""
        request = self.request(**overrides)
        return int(max(request.steps - min(request.steps * request.strength, request.steps), 0))

    def steps_run(self, **overrides: Any) -> int:
        return self.request(**overrides).steps - self.start(**overrides)


class MeanVAE(AutoencoderKL):
    """Encodes to the mean: SD3's ControlNet pipeline samples from the global generator."""

    def encode(self, x: Tensor, return_dict: bool = True) -> Any:
        encoded = super().encode(x, return_dict=return_dict)
        encoded[0].std.zero_()
        return encoded


def tiny_vae() -> AutoencoderKL:
    """Four latent channels, `VAE_SCALE` pixels to a latent."""
    vae = MeanVAE(
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        block_out_channels=(8, 8),
        latent_channels=4,
        norm_num_groups=4,
        sample_size=LATENT * VAE_SCALE,
        scaling_factor=0.5,
        shift_factor=0.1,
        mid_block_add_attention=False,
    )
    return randomise(vae)
