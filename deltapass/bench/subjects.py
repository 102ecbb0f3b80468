"""What is sampled: a pipeline, how it is called for some seeds, and what it is."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, final

import torch
from torch import nn

from deltapass.bench.environment import Environment
from deltapass.demo.embedded import ASSETS, load_embedded
from deltapass.errors import BenchError
from deltapass.pipelines.attach import denoisers
from deltapass.tuning.pipeline_loop import DEALT, GivenCall, dealt

EMBEDDED: Final = ("garments", "nouns")
TITLES: Final[Mapping[str, str]] = {"garments": "garments (embedded)", "nouns": "nouns (embedded)"}
PART: Final = 25  # images of an embedded model that are drawn and kept together
Prompts = tuple[Any, ...]


@final
@dataclass(frozen=True, kw_only=True)
class Subject:
    """A pipeline that is measured.

    Attributes:
        name: Of its folder among the results.
        title: As pages show it.
        source: As the command line names it.
        pipeline: Of diffusers, on its device.
        call: Seeds -> arguments of a call that samples one image each, besides steps and noise.
        folder: With its weights and tuned schedules, if it has one.
        batch: Images that are drawn together.
        random_weights: Whether it can prove speed alone.
    """

    name: str
    title: str
    source: str
    pipeline: Any
    call: Callable[[Sequence[int]], Mapping[str, Any]]
    folder: Path | None = None
    batch: int = 1
    random_weights: bool = False
    _digest: list[str] = field(default_factory=list, repr=False)

    @property
    def models(self) -> dict[str, nn.Module]:
        """Its denoisers by attribute."""
        return denoisers(self.pipeline)

    @property
    def device(self) -> torch.device:
        """Of its first denoiser."""
        return next(next(iter(self.models.values())).parameters()).device

    def prompts(self, seeds: Sequence[int]) -> tuple[Any, ...]:
        """What each image is asked for."""
        given = self.call(seeds)
        told = next((given[name] for name in DEALT if name in given), None)
        return tuple(told) if isinstance(told, list | tuple) else (told,) * len(seeds)

    def digest(self) -> str:
        """Of the weights and the scheduler's settings."""
        if not self._digest:
            found = self.folder and _files_digest(self.folder)
            self._digest.append(found or _state_digest(self))
        return self._digest[0]


def embedded_subject(name: str, environment: Environment, guidance: float) -> Subject:
    """One of the trained models of the package; prompts go by the seed."""
    pipeline = load_embedded(name, dtype=environment.torch_dtype)
    pipeline.set_progress_bar_config(disable=True)
    argument = "prompt" if name == "nouns" else "class_labels"

    return Subject(
        name=name,
        title=TITLES[name],
        source=name,
        pipeline=pipeline.to(environment.device),
        call=_Examples(pipeline, argument, guidance),
        folder=ASSETS / name,
        batch=environment.batch or PART,
    )


@final
@dataclass(frozen=True, kw_only=True)
class Dealt:
    """Prompts that are dealt to the seeds in turn, from `first_seed` on."""

    prompts: Prompts = ()
    first_seed: int = 0


def pipeline_subject(
    source: str,
    made: tuple[Any, GivenCall | None],
    environment: Environment,
    dealt_out: Dealt,
    *,
    random_weights: bool = False,
) -> Subject:
    """Any pipeline of diffusers with a transformer.

    Args:
        source: A folder, or module:factory.
        made: The pipeline that came from there, and how it is called; lists of prompts or class
            labels are dealt to the seeds.
        environment: Where it runs.
        dealt_out: Prompts in place of those of the call: words, or arguments by name.
        random_weights: Whether it can prove speed alone.

    Raises:
        BenchError: If it is no pipeline, or nothing says what it is asked for.
    """
    pipeline, call = made
    if not hasattr(pipeline, "scheduler") or not denoisers(pipeline):
        raise BenchError(
            f"{source} gives {type(pipeline).__name__}, which is no pipeline with a transformer",
            "Give a folder of diffusers, or module:factory giving a pipeline, or (pipeline, call)",
        )
    if hasattr(pipeline, "set_progress_bar_config"):
        pipeline.set_progress_bar_config(disable=True)
    for model in denoisers(pipeline).values():
        model.eval().requires_grad_(False)  # gradients would only keep the pass from caching
    folder = Path(source) if Path(source).is_dir() else None
    return Subject(
        name=folder.resolve().name if folder else source.replace(":", "-"),
        title=f"{type(pipeline).__name__} ({folder.resolve().name if folder else source})",
        source=source,
        pipeline=_placed(pipeline, environment),
        call=_Calling(call or {}, dealt_out),
        folder=folder,
        batch=environment.batch or 1,
        random_weights=random_weights,
    )


def _placed(pipeline: Any, environment: Environment) -> Any:
    """On its device, in its type; a type that it has already is left alone."""
    there = next(next(iter(denoisers(pipeline).values())).parameters()).dtype
    wanted = environment.torch_dtype
    return pipeline.to(environment.device, *(() if there == wanted else (wanted,)))


@final
@dataclass(frozen=True)
class _Examples:
    """The call of an embedded model, whose prompts go by the seed. Unlike a closure it pickles."""

    pipeline: Any
    argument: str
    guidance: float

    def __call__(self, seeds: Sequence[int]) -> dict[str, Any]:
        return {self.argument: self.pipeline.examples(seeds), "guidance_scale": self.guidance}


@final
@dataclass(frozen=True)
class _Calling:
    """The call of any other pipeline."""

    call: GivenCall
    given: Dealt

    def __call__(self, seeds: Sequence[int]) -> dict[str, Any]:
        own = dict(self.call(seeds)) if callable(self.call) else dealt(self.call, seeds)
        prompts = self.given.prompts
        if not prompts:
            return own
        told = [prompts[(seed - self.given.first_seed) % len(prompts)] for seed in seeds]
        if not isinstance(told[0], Mapping):
            return {**own, "prompt": told}
        return {**own, **{name: [each[name] for each in told] for name in told[0]}}


# ---- digests -------------------------------------------------------------------------------------


def _files_digest(folder: Path) -> str | None:
    """Of weights and settings on disk; None where there are none in safetensors."""
    found, weights = hashlib.sha256(), False
    for path in sorted(folder.rglob("*")):
        if path.suffix == ".safetensors" or path.name.endswith("config.json"):
            weights = weights or path.suffix == ".safetensors"
            with path.open("rb") as file:
                while part := file.read(2**22):
                    found.update(part)
    return found.hexdigest()[:12] if weights else None


def _state_digest(subject: Subject) -> str:
    """Of the denoisers as they are in memory."""
    found = hashlib.sha256(repr(getattr(subject.pipeline.scheduler, "config", "")).encode())
    for name, model in subject.models.items():
        found.update(name.encode())
        for key, value in model.state_dict().items():
            found.update(key.encode())
            found.update(value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy())
    return found.hexdigest()[:12]
