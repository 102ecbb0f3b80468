"""What a call of a pipeline asks for, and the arguments that say so."""

from __future__ import annotations

from collections.abc import Callable, Set
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from models.seeds import noise
from models.tiny import TEXT, WIDTH

LATENT = 8
VAE_SCALE = 2  # pixels to a latent of the tiny VAE
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

    def labels(self) -> list[int]:
        """Numbers of classes."""
        return [7 + 100 * self.prompt + index for index in range(self.batch)]


# Every argument that some pipeline takes, besides sizes and guidance.
ARGUMENTS: dict[str, Callable[[Request], Any]] = {
    "num_inference_steps": lambda request: request.steps,
    "generator": lambda request: torch.Generator().manual_seed(request.seed),
    "class_labels": Request.labels,
    "prompt_embeds": Request.text,
    "prompt_attention_mask": Request.mask,
    "pooled_prompt_embeds": Request.pooled,
    "negative_prompt": lambda _: None,  # some have a default, and refuse it with embeddings
    "negative_prompt_embeds": Request.negative,
    "negative_prompt_attention_mask": lambda request: request.mask(negative=True),
    "negative_pooled_prompt_embeds": lambda request: request.pooled(negative=True),
    "image": Request.image,
    "control_image": Request.image,
    "strength": lambda request: request.strength,
    "num_frames": lambda _: 5,
    "use_resolution_binning": lambda _: False,
}


def arguments(request: Request, known: Set[str], scale: int) -> dict[str, Any]:
    """Those of a pipeline that takes `known`; `scale` pixels to a latent.

    DiT's pipeline has one size, and always decodes: it gives images.
    """
    chosen = {name: make(request) for name, make in ARGUMENTS.items() if name in known}
    if "height" not in known:
        return {**chosen, "output_type": "pt"}
    side = request.size * scale
    return {**chosen, "height": side, "width": side, "output_type": "latent"}
