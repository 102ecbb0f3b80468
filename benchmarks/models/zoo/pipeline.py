"""A pipeline of the zoo: how it is built from its row, and how it is called."""

from __future__ import annotations

import inspect
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

import diffusers
from diffusers import AutoencoderKL
from torch import Tensor, nn

from models.diffusion import build
from models.rows import read_rows
from models.seeds import randomise
from models.streams import Streams, blocks_of, streams_of
from models.tiny import tiny_model
from models.zoo.request import VAE_SCALE, Request, arguments

ROWS: Final = read_rows(Path(__file__).with_name("pipelines.toml"))
ZOO_NAMES = tuple(ROWS)


@dataclass(frozen=True, kw_only=True)
class Row:
    """A row of pipelines.toml, which explains the fields."""

    pipeline: str
    model: str
    scheduler: dict[str, Any]
    control: str = ""
    vae: bool = True
    scale: int = VAE_SCALE
    separate: bool = False
    given: dict[str, Any] = field(default_factory=dict)
    guided_by: str = "guidance_scale"
    request: dict[str, Any] = field(default_factory=dict)

    @property
    def kind(self) -> type:
        return getattr(diffusers, self.pipeline)

    @property
    def arguments(self) -> frozenset[str]:
        """What a call of the pipeline takes."""
        return frozenset(inspect.signature(self.kind.__call__).parameters)


@dataclass(frozen=True)
class Zoo:
    """A pipeline of diffusers with tiny random components, and how to call it.

    Overrides are fields of `Request`; those in `fixed` this pipeline cannot vary. `denoiser` stays
    the plain module whatever is put into `pipe.transformer`.
    """

    name: str
    row: Row
    pipe: Any
    denoiser: nn.Module

    @property
    def blocks(self) -> tuple[nn.Module, ...]:
        """Refiners before the stack are no part of it."""
        return blocks_of(self.denoiser)

    @property
    def streams(self) -> Streams:
        return streams_of(self.denoiser)

    @property
    def separate(self) -> bool:
        return self.row.separate

    @property
    def defaults(self) -> Request:
        return Request(**self.row.request)

    @property
    def steps_default(self) -> int:
        return self.defaults.steps

    @property
    def fixed(self) -> tuple[str, ...]:
        needed = {"size": "height", "strength": "strength"}
        return tuple(name for name, told in needed.items() if told not in self.row.arguments)

    def request(self, **overrides: Any) -> Request:
        if refused := set(overrides) & set(self.fixed):
            raise ValueError(f"{self.name} has no choice of {sorted(refused)}")
        return replace(self.defaults, **overrides)

    def call(self, **overrides: Any) -> dict[str, Any]:
        """Arguments for `pipe`, with a generator of their own: use them for one call only."""
        request = self.request(**overrides)
        guidance = {**self.row.given, self.row.guided_by: request.guidance}
        return {**arguments(request, self.row.arguments, self.row.scale), **guidance}

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


def make_pipe(name: str) -> Zoo:
    """The named pipeline, built anew; two of one name have the same weights."""
    row = Row(**ROWS[name])
    known, denoiser = inspect.signature(row.kind.__init__).parameters, tiny_model(row.model)
    options = dict(row.scheduler)
    parts = {
        "transformer": denoiser,
        "scheduler": getattr(diffusers, options.pop("class"))(**options),
        "vae": randomise(build("vae", kind=MeanVAE)) if row.vae else None,
        "controlnet": tiny_model(row.control, seed=1) if row.control else None,
        "id2label": {index: f"class {index}" for index in range(1000)},
        **{text: None for text in known if text.startswith(("tokenizer", "text_encoder"))},
    }
    pipe = row.kind(**{part: value for part, value in parts.items() if part in known})
    pipe.set_progress_bar_config(disable=True)
    return Zoo(name, row, pipe, denoiser)
