"""The commands `deltapass run` and `trajectory`: sampling with a bundle, here or in C++."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Final, final

import numpy
import torch
import typer
from rich.console import Console

from deltapass.bundles.loaded import load
from deltapass.cli.command_line import Pairs, clean_errors, parse_call, parse_pairs
from deltapass.cli.sources import INDEX, load_pipeline
from deltapass.errors import OptionError
from deltapass.exporting.trajectory_file import linear_sampler, write_trajectory
from deltapass.libraries import needs
from deltapass.pipelines.attach import attach, denoisers, last_report

PICTURES: Final = (".png", ".jpg", ".jpeg", ".webp")


@final
@dataclass(frozen=True, kw_only=True)
class Sampled:
    """Images (B, H, W, C) in 0..1, and how long they took."""

    images: Any
    seconds: float


def run_command(  # noqa: PLR0913, PLR0917 - one parameter an option is how typer is told of them
    bundle: Annotated[Path, typer.Argument(help="Folder that export wrote.")],
    output: Annotated[Path, typer.Option("-o", "--output", help="Picture to write.")] = Path(
        "grid.png"
    ),
    pipeline: Annotated[str, typer.Option(help="'embedded', or a pipeline's folder.")] = "embedded",
    count: Annotated[int, typer.Option(min=1, help="Images of the embedded pipeline.")] = 20,
    seed: Annotated[int, typer.Option(help="Seed of the first image; the others follow.")] = 0,
    steps: Annotated[int, typer.Option(min=1, help="Steps of the sampler.")] = 20,
    call: Annotated[str, typer.Option(help="Further arguments of the pipeline, as JSON.")] = "{}",
    engine: Annotated[
        Pairs, typer.Option(help="Option of the format as name=value; may be repeated.")
    ] = None,
    compare: Annotated[bool, typer.Option(help="Sample the plain model too, and compare.")] = False,
) -> None:
    """Sample with a bundle in the place of the pipeline's denoiser."""
    console = Console()
    if output.suffix.lower() not in PICTURES:
        raise typer.BadParameter(f"{output} does not end in {', '.join(PICTURES)}")
    given = {"num_inference_steps": steps, "output_type": "np", **parse_call(call)}
    with clean_errors():
        model = load(bundle, **parse_pairs(engine, given_by="--engine"))
        if pipeline == "embedded":
            made, given = _embedded(model.dtype, count, given)
        else:
            made = _from_folder(Path(pipeline)).to(model.device)
        plain = sample(made, given, seed) if compare else None
        setattr(made, next(iter(denoisers(made))), model)
        attach(made)
        ours = sample(made, given, seed)
        write_images(ours.images, output)
        console.print(last_report(made), highlight=False)
        console.print(_outcome(ours, plain), highlight=False)
    console.print(f"picture: {output}")


def trajectory_command(
    output: Annotated[Path, typer.Option("-o", "--output", help="File to write.")] = Path(
        "trajectory.safetensors"
    ),
    count: Annotated[int, typer.Option(min=1, help="Images.")] = 20,
    seed: Annotated[int, typer.Option(help="Seed of the first image; the others follow.")] = 0,
    steps: Annotated[int, typer.Option(min=1, help="Steps of the sampler.")] = 20,
    guidance: Annotated[float, typer.Option(help="Classifier-free guidance.")] = 2.0,
) -> None:
    """Write the C++ runner's input for the embedded model: sample, labels and sampler."""
    with clean_errors():
        from deltapass.demo.embedded import class_numbers, generators, load_embedded

        pipeline = load_embedded()
        config = pipeline.transformer.config
        size, null = config.sample_size, config.num_embeds_ada_norm
        noise = [
            torch.randn(1, config.in_channels, size, size, generator=generator)
            for generator in generators(seed, count)
        ]
        labels = class_numbers(pipeline, count) + [null] * count
        write_trajectory(
            output,
            torch.cat(noise) * float(pipeline.scheduler.init_noise_sigma),
            linear_sampler(pipeline.scheduler, steps),
            {"class_labels": torch.tensor(labels)},
            guidance=guidance,
        )
    Console().print(f"input: {output}")


def sample(pipeline: Any, call: Mapping[str, Any], seed: int) -> Sampled:
    """Sample once.

    Raises:
        OptionError: If the pipeline takes no such call.
    """
    from deltapass.demo.embedded import generators

    made = generators(seed, len(call.get("class_labels", "1")))
    started = time.perf_counter()
    try:
        images = pipeline(**call, generator=made if len(made) > 1 else made[0]).images
    except TypeError as error:
        allowed = f"arguments that {type(pipeline).__name__} takes; it says: {error}"
        raise OptionError("call", sorted(call), allowed) from error
    return Sampled(images=numpy.asarray(images), seconds=time.perf_counter() - started)


def write_images(images: Any, path: Path) -> None:
    """All images as one picture.

    Raises:
        MissingLibraryError: If pillow is not installed.
    """
    from deltapass.demo.images import grid

    with needs("pillow", "demo"):
        from PIL import Image
    pixels = (grid(_channels_first(images)) * 255).round().clamp(0, 255)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels.to(torch.uint8).numpy()).save(path)


def _embedded(dtype: torch.dtype, count: int, call: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """The embedded pipeline, and its call for `count` images."""
    from deltapass.demo.embedded import class_numbers, load_embedded

    pipeline = load_embedded(dtype=dtype)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline, {"class_labels": class_numbers(pipeline, count), **call}


def _from_folder(folder: Path) -> Any:
    if not (folder / INDEX).is_file():
        raise OptionError("pipeline", str(folder), "'embedded', or a pipeline's folder")
    return load_pipeline(folder)


def _outcome(ours: Sampled, plain: Sampled | None) -> str:
    """The times, and how far the pictures are from the plain model's."""
    text = f"{len(ours.images)} images in {ours.seconds:.2f} s"
    if plain is None:
        return text
    from deltapass.demo.images import mean_psnr

    psnr = mean_psnr(_channels_first(ours.images), _channels_first(plain.images))
    seconds = f"the plain model, eager: {plain.seconds:.2f} s"
    return f"{text}; {seconds}; PSNR against its images: {psnr:.1f} dB"


def _channels_first(images: Any) -> torch.Tensor:
    return torch.from_numpy(images).permute(0, 3, 1, 2)
