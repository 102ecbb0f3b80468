"""Sampling with a bundle in a pipeline: what `deltapass run` does."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, final

import numpy
import torch

from deltapass.bundles.loaded import LoadedModel, load
from deltapass.cli.sources import INDEX, load_pipeline
from deltapass.errors import OptionError
from deltapass.exporting.trajectory_file import linear_sampler, write_trajectory
from deltapass.libraries import needs
from deltapass.pipelines.attach import attach, denoisers, last_report
from deltapass.sessions.report import SessionReport

CLASSES: Final = 10  # of the embedded model


@final
@dataclass(frozen=True, kw_only=True, slots=True)
class Sampling:
    """What to sample. `count` and `seed` are for the embedded pipeline, `call` for any other."""

    pipeline: str
    count: int
    seed: int
    steps: int
    call: Mapping[str, Any]


@final
@dataclass(frozen=True, kw_only=True)
class Sampled:
    """Images (B, H, W, C) in 0..1, what was run, and how long it took."""

    images: Any
    report: SessionReport
    seconds: float
    plain_seconds: float | None
    psnr: float | None

    @property
    def line(self) -> str:
        """The times, and how far the pictures are from the plain model's."""
        text = f"{len(self.images)} images in {self.seconds:.2f} s"
        if self.plain_seconds is None or self.psnr is None:
            return text
        plain = f"the plain model, eager: {self.plain_seconds:.2f} s"
        return f"{text}; {plain}; PSNR against its images: {self.psnr:.1f} dB"


def sample(
    bundle: Path, sampling: Sampling, engine: Mapping[str, Any], *, compare: bool
) -> Sampled:
    """Sample with a bundle.

    Args:
        bundle: The bundle's folder.
        sampling: What to sample.
        engine: Options of its format, as for `load`.
        compare: Whether to sample with the plain model too.

    Raises:
        BundleError: If the bundle cannot be loaded.
        OptionError: If there is no such pipeline, or it takes no such call.
    """
    model = load(bundle, **engine)
    pipeline, call = _pipeline(sampling, model)
    plain, plain_seconds = (None, None)
    if compare:
        plain, plain_seconds = _run(pipeline, call, sampling.seed)
    setattr(pipeline, next(iter(denoisers(pipeline))), model)
    attach(pipeline)
    images, seconds = _run(pipeline, call, sampling.seed)
    psnr = None if plain is None else _psnr(images, plain)
    return Sampled(
        images=images,
        report=last_report(pipeline) or SessionReport(()),
        seconds=seconds,
        plain_seconds=plain_seconds,
        psnr=psnr,
    )


def write_input(path: Path, sampling: Sampling, guidance: float) -> None:
    """Write the C++ runner's input for the embedded pipeline: the images `sample` would make.

    Raises:
        MissingLibraryError: If diffusers or safetensors is not installed.
    """
    from deltapass.demo.embedded import load_embedded

    pipeline = load_embedded()
    config = pipeline.transformer.config
    size, null = config.sample_size, config.num_embeds_ada_norm
    noise = [
        torch.randn(1, config.in_channels, size, size, generator=generator)
        for generator in _generators(sampling.seed, sampling.count)
    ]
    labels = [number % CLASSES for number in range(sampling.count)]
    write_trajectory(
        path,
        torch.cat(noise) * float(pipeline.scheduler.init_noise_sigma),
        linear_sampler(pipeline.scheduler, sampling.steps),
        {"class_labels": torch.tensor(labels + [null] * sampling.count)},
        guidance=guidance,
    )


def _generators(seed: int, count: int) -> list[torch.Generator]:
    """One an image."""
    return [torch.Generator().manual_seed(seed + number) for number in range(count)]


def _psnr(images: Any, wanted: Any) -> float:
    """In dB, the mean over images, as the demo gives it."""
    from deltapass.demo.compare import mean_psnr

    ours, theirs = (torch.from_numpy(some).permute(0, 3, 1, 2) for some in (images, wanted))
    return mean_psnr(ours, theirs)


def _pipeline(sampling: Sampling, model: LoadedModel) -> tuple[Any, dict[str, Any]]:
    """The pipeline, and how it is called."""
    known = {"num_inference_steps": sampling.steps, "output_type": "np", **sampling.call}
    if sampling.pipeline == "embedded":
        from deltapass.demo.embedded import load_embedded

        pipeline = load_embedded(dtype=model.dtype)
        pipeline.set_progress_bar_config(disable=True)
        labels = [number % CLASSES for number in range(sampling.count)]
        return pipeline, {"class_labels": labels, **known}
    folder = Path(sampling.pipeline)
    if not (folder / INDEX).is_file():
        raise OptionError("pipeline", sampling.pipeline, "'embedded', or a pipeline's folder")
    return load_pipeline(folder).to(model.device), known


def _run(pipeline: Any, call: Mapping[str, Any], seed: int) -> tuple[Any, float]:
    """Images and seconds of one call."""
    count = len(call["class_labels"]) if "class_labels" in call else 1
    generators = _generators(seed, count)
    generator = generators if count > 1 else generators[0]
    started = time.perf_counter()
    try:
        images = pipeline(**call, generator=generator).images
    except TypeError as error:
        allowed = f"arguments that {type(pipeline).__name__} takes; it says: {error}"
        raise OptionError("call", sorted(call), allowed) from error
    return numpy.asarray(images), time.perf_counter() - started


def write_images(images: Any, path: Path) -> None:
    """All images as one picture.

    Raises:
        MissingLibraryError: If pillow is not installed.
    """
    with needs("pillow", "demo"):
        from PIL import Image
    columns = 5
    rows = -(-len(images) // columns)
    count, height, width, channels = images.shape
    padded = numpy.zeros((rows * columns, height, width, channels), images.dtype)
    padded[:count] = images
    cells = padded.reshape(rows, columns, height, width, channels).swapaxes(1, 2)
    whole = cells.reshape(rows * height, columns * width, channels)
    pixels = (whole * 255).round().clip(0, 255).astype(numpy.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels.squeeze(-1) if channels == 1 else pixels).save(path)
