"""The work of `deltapass run`: a bundle in the place of a denoiser, sampled and compared."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

import numpy
import torch

from deltapass.bundles.loaded import LoadedModel, load
from deltapass.bundles.manifest import BundlePlan
from deltapass.cli.models import EMBEDDED
from deltapass.cli.sources import load_pipeline
from deltapass.errors import BundleError, OptionError, PipelineCallError, counted
from deltapass.libraries import needs
from deltapass.pipelines.attach import attach, denoisers, last_report
from deltapass.pipelines.first_call import refused_calls
from deltapass.schedule.explicit import AnySchedule
from deltapass.sessions.report import SessionReport

GUIDANCE = 2.0  # of the embedded pipeline, unless its call says otherwise


@final
@dataclass(frozen=True, kw_only=True)
class RunJob:
    """What to sample: `count` is of the embedded pipeline, None for as many as the bundle takes."""

    pipeline: str
    count: int | None
    seed: int
    call: Mapping[str, Any]
    schedule: AnySchedule | None
    compare: bool


@final
@dataclass(frozen=True, kw_only=True)
class Outcome:
    """Images (B, H, W, C) in 0..1, the report of the run, and times as text."""

    images: Any
    report: SessionReport | None
    text: str


@final
@dataclass(frozen=True, kw_only=True)
class Sampled:
    """Images (B, H, W, C) in 0..1, and how long they took."""

    images: Any
    seconds: float


def run_bundle(bundle: Path, job: RunJob, engine: Mapping[str, Any]) -> Outcome:
    """Sample with a bundle, and with the plain model if it is to be compared.

    Raises:
        BundleError: If the bundle is damaged, or of another model than the pipeline's denoiser.
        OptionError: If the bundle does not take so many images.
        PipelineCallError: If the pipeline takes no such call, or gives no images.
        ModelSourceError: If the pipeline cannot be loaded.
    """
    model = load(bundle, **engine)
    if job.pipeline == EMBEDDED:
        pipeline, call = _embedded(model, job)
    else:
        pipeline, call = load_pipeline(Path(job.pipeline)).to(model.device), dict(job.call)
    name, denoiser = next(iter(denoisers(pipeline).items()))
    check_model_of(model.plan, denoiser, job.pipeline)
    plain = sample(pipeline, call, job.seed) if job.compare else None
    setattr(pipeline, name, model)
    attach(pipeline, schedule=job.schedule)
    ours = sample(pipeline, call, job.seed)
    return Outcome(images=ours.images, report=last_report(pipeline), text=_text(ours, plain))


def check_model_of(plan: BundlePlan, denoiser: Any, pipeline: str) -> None:
    """Refuse a bundle of another model than the pipeline's own, by class and configuration.

    Raises:
        BundleError: If they differ; names the first difference.
    """
    exported = plan.attributes
    found, wanted = type(denoiser).__name__, exported.get("class")
    if found != wanted:
        raise _other_model(f"it is of {wanted}, the pipeline's denoiser is {found}", pipeline)
    config = dict(getattr(denoiser, "config", None) or {})
    for name, value in (exported.get("config") or {}).items():
        held = config.get(name, value)
        # As plan.json holds it: tuples are lists there. Names with _ say where it was loaded from.
        held = list(held) if isinstance(held, tuple) else held
        if not name.startswith("_") and held != value:
            raise _other_model(f"its {name} is {value}, the denoiser's {held}", pipeline)


def _other_model(problem: str, pipeline: str) -> BundleError:
    whose = "the embedded pipeline" if pipeline == EMBEDDED else f"the pipeline in {pipeline}"
    remedy = "Give its pipeline's folder with --pipeline"
    if pipeline == EMBEDDED:
        remedy += "; call a model that has no pipeline in Python, with deltapass.load"
    return BundleError(f"the bundle does not fit {whose}: {problem}", remedy)


def sample(pipeline: Any, call: Mapping[str, Any], seed: int) -> Sampled:
    """Sample once; the frames of a video count as images.

    Raises:
        PipelineCallError: If the pipeline takes no such call, or gives no images.
    """
    from deltapass.demo.embedded import generators

    made = generators(seed, len(call.get("class_labels", "1")))
    given = {**call, "output_type": "np", "generator": made if len(made) > 1 else made[0]}
    started = time.perf_counter()
    with refused_calls(pipeline, call):
        result = pipeline(**given)
    seconds = time.perf_counter() - started
    images = numpy.asarray(getattr(result, "images", getattr(result, "frames", ())))
    if images.ndim == 5:
        images = images.reshape(-1, *images.shape[2:])
    if images.ndim != 4:
        problem = f"it gives {type(result).__name__} without images"
        raise PipelineCallError(type(pipeline).__name__, sorted(call), problem)
    return Sampled(images=images, seconds=seconds)


def write_images(images: Any, path: Path) -> None:
    """All images as one picture.

    Raises:
        MissingLibraryError: If pillow is not installed.
    """
    from deltapass.demo.images import grid

    with needs("pillow", "demo"):
        from PIL import Image
    pixels = (grid(_channels_first(images)) * 255).round().clamp(0, 255)
    Image.fromarray(pixels.to(torch.uint8).numpy()).save(path)


def _embedded(model: LoadedModel, job: RunJob) -> tuple[Any, dict[str, Any]]:
    """The embedded pipeline, and its call for as many images as are wanted, or fit the bundle."""
    from deltapass.demo.embedded import class_numbers, load_embedded

    pipeline = load_embedded(dtype=model.dtype)
    pipeline.set_progress_bar_config(disable=True)
    check_model_of(model.plan, pipeline.transformer, job.pipeline)
    call = dict(job.call)
    if "class_labels" not in call:
        halves = 2 if call.get("guidance_scale", GUIDANCE) > 1 else 1
        call["class_labels"] = class_numbers(pipeline, image_count(model.plan, job.count, halves))
    return pipeline, call


def image_count(plan: BundlePlan, wanted: int | None, halves: int) -> int:
    """How many images to sample: those wanted, or the most up to 20 that the bundle takes.

    Args:
        plan: The bundle's.
        wanted: What the user asked for.
        halves: Rows of the batch an image takes: 2 with guidance.

    Raises:
        OptionError: If the bundle takes another number.
    """
    least, most = _batch_range(plan)
    fewest, greatest = -(-least // halves), most // halves
    if wanted is None and fewest <= greatest:
        return min(greatest, max(fewest, 20))
    if wanted is None or not fewest <= wanted <= greatest:
        taken = str(fewest) if fewest == greatest else f"{fewest} to {greatest}"
        how = "with guidance two rows each" if halves == 2 else "without guidance"
        batch = str(least) if least == most else f"{least} to {most}"
        allowed = f"{taken}: the bundle was exported for a batch of {batch}, {how}"
        raise OptionError("count", wanted, allowed)
    return wanted


def _batch_range(plan: BundlePlan) -> tuple[int, int]:
    """The least and the greatest batch of a bundle."""
    size = next(entry.shape[0] for entry in plan.inputs if entry.role == "sample")
    if isinstance(size, int):
        return size, size
    least, most = plan.dimensions.get(size, (1, None))
    return least, 2**31 if most is None else most


def _text(ours: Sampled, plain: Sampled | None) -> str:
    """The times, and how far the pictures are from the plain model's."""
    text = f"{counted(len(ours.images), 'image')} in {ours.seconds:.2f} s"
    if plain is None:
        return text
    from deltapass.demo.images import mean_psnr

    psnr = mean_psnr(_channels_first(ours.images), _channels_first(plain.images))
    seconds = f"the plain model, eager: {plain.seconds:.2f} s"
    return f"{text}; {seconds}; PSNR against its images: {psnr:.1f} dB"


def _channels_first(images: Any) -> torch.Tensor:
    return torch.from_numpy(images).permute(0, 3, 1, 2)
