"""An example call of a model of diffusers, with the sizes that its configuration says.

A call has a noise level from 1.0 (noisiest) to 0.0, and a timestep on the model's own scale. The
seed changes the latent only: text and labels stay, as in sampling.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from models.seeds import noise
from models.streams import Call

TEXT, POOLED = 1_000, 1_001  # seeds


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """What the configuration of a model leaves open.

    Attributes:
        batch: Samples in a call.
        text: Tokens of a prompt.
        side: Rows and columns of image tokens, of classes whose configuration does not say.
        padding: How many of them do not count in the last prompt; without any there is no mask.
        whole: Whether DiT and PixArt are given integers from 999 down, not floats from 1000 down.
        device: Of all inputs.
        dtype: Of latents and texts.
    """

    batch: int = 2
    text: int = 6
    side: int = 4
    padding: int = 2
    whole: bool = True
    device: str = "cpu"
    dtype: torch.dtype = torch.float32

    def noise(self, seed: int, *shape: int) -> Tensor:
        """Seeded values for every sample."""
        if self.device == "meta":
            return torch.empty((self.batch, *shape), device=self.device, dtype=self.dtype)
        return noise(seed, self.batch, *shape).to(self.device, self.dtype)

    def each(self, value: float) -> Tensor:
        """One float32 for every sample."""
        return torch.full((self.batch,), value, device=self.device)

    def step(self, level: float) -> Tensor:
        """A timestep for every sample, of those trained on a thousand steps."""
        if self.whole:
            return self.each(round(999 * level)).to(torch.int64)
        return self.each(1000 * level)

    def mask(self) -> Tensor | None:
        """Ones for the tokens that count."""
        if not self.padding:
            return None
        mask = torch.ones(self.batch, self.text, dtype=torch.int64, device=self.device)
        mask[-1, self.text - self.padding :] = 0
        return mask


def _square(config: Any) -> tuple[int, int, int]:
    return config.in_channels, config.sample_size, config.sample_size


def dit(config: Any, sizes: Sizes, level: float, seed: int = 0) -> Call:
    """Half the labels are the null class of guidance."""
    labels = [7, config.num_embeds_ada_norm] * (sizes.batch // 2)
    kwargs = {
        "timestep": sizes.step(level),
        "class_labels": torch.tensor(labels, device=sizes.device),
        "return_dict": False,
    }
    return (sizes.noise(seed, *_square(config)),), kwargs


def pixart(config: Any, sizes: Sizes, level: float, seed: int = 0) -> Call:
    """Some sizes of the model are told the resolution."""
    added: dict[str, Any] = {"resolution": None, "aspect_ratio": None}
    if config.use_additional_conditions:
        ones = torch.ones(sizes.batch, 2, device=sizes.device, dtype=sizes.dtype)
        added = {"resolution": 8.0 * config.sample_size * ones, "aspect_ratio": ones[:, :1]}
    mask = sizes.mask()
    kwargs = {
        "encoder_hidden_states": sizes.noise(TEXT, sizes.text, config.caption_channels),
        **({} if mask is None else {"encoder_attention_mask": mask}),
        "timestep": sizes.step(level),
        "added_cond_kwargs": added,
        "return_dict": False,
    }
    return (sizes.noise(seed, *_square(config)),), kwargs


def sd3(config: Any, sizes: Sizes, level: float, seed: int = 0) -> Call:
    """Timesteps from 1000 down, as floats."""
    return (), {
        "hidden_states": sizes.noise(seed, *_square(config)),
        "encoder_hidden_states": sizes.noise(TEXT, sizes.text, config.joint_attention_dim),
        "pooled_projections": sizes.noise(POOLED, config.pooled_projection_dim),
        "timestep": sizes.each(1000 * level),
        "return_dict": False,
    }


def chroma(config: Any, sizes: Sizes, level: float, seed: int = 0) -> Call:
    """Timesteps from 1 down."""
    return (), {
        "hidden_states": sizes.noise(seed, sizes.side**2, config.in_channels),
        "encoder_hidden_states": sizes.noise(TEXT, sizes.text, config.joint_attention_dim),
        "timestep": sizes.each(level),
        **{
            name: place.to(sizes.device)
            for name, place in flux_places(sizes.side, sizes.side, sizes.text).items()
        },
        "return_dict": False,
    }


def flux(config: Any, sizes: Sizes, level: float, seed: int = 0) -> Call:
    """As Chroma, with pooled text and guidance."""
    _, kwargs = chroma(config, sizes, level, seed)
    pooled = sizes.noise(POOLED, config.pooled_projection_dim)
    return (), {**kwargs, "pooled_projections": pooled, "guidance": sizes.each(3.5)}


def flux_places(rows: int, columns: int, text: int) -> dict[str, Tensor]:
    """Where image tokens lie in the picture, and text tokens nowhere."""
    grid = torch.meshgrid(torch.arange(float(rows)), torch.arange(float(columns)), indexing="ij")
    places = [torch.zeros(rows * columns), *(axis.flatten() for axis in grid)]
    return {"img_ids": torch.stack(places, dim=1), "txt_ids": torch.zeros(text, 3)}


def wan(config: Any, sizes: Sizes, level: float, seed: int = 0) -> Call:
    """Channels, frames, height, width."""
    return (), {
        "hidden_states": sizes.noise(seed, config.in_channels, 2, 8, 8),
        "timestep": sizes.each(1000 * level),
        "encoder_hidden_states": sizes.noise(TEXT, sizes.text, config.text_dim),
        "return_dict": False,
    }


def cogvideox(config: Any, sizes: Sizes, level: float, seed: int = 0) -> Call:
    """Frames, channels, height, width."""
    side = config.sample_height, config.sample_width
    return (), {
        "hidden_states": sizes.noise(seed, 2, config.in_channels, *side),
        "encoder_hidden_states": sizes.noise(TEXT, sizes.text, config.text_embed_dim),
        "timestep": sizes.step(level),
        "return_dict": False,
    }


CALLS: dict[str, Callable[..., Call]] = {
    "DiTTransformer2DModel": dit,
    "PixArtTransformer2DModel": pixart,
    "SD3Transformer2DModel": sd3,
    "FluxTransformer2DModel": flux,
    "ChromaTransformer2DModel": chroma,
    "WanTransformer3DModel": wan,
    "CogVideoXTransformer3DModel": cogvideox,
}


def call_of(model: nn.Module, sizes: Sizes) -> Callable[..., Call]:
    """`call(level, seed)` -> (args, kwargs), for the model's class."""
    return partial(CALLS[type(model).__name__], model.config, sizes)
