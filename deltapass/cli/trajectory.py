"""The command `deltapass trajectory`: the C++ runner's input for the embedded model."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from deltapass.cli.command_line import (
    Count,
    Guidance,
    Overwrite,
    Seed,
    Steps,
    checking,
    output_option,
    say_written,
    working,
)
from deltapass.cli.outputs import check_file, whole_file


def trajectory_command(  # noqa: PLR0913, PLR0917 - one parameter an option is how typer is told
    output: Annotated[Path, output_option("File to write.")] = Path("trajectory.safetensors"),
    count: Count = None,
    seed: Seed = 0,
    steps: Steps = 20,
    guidance: Guidance = 2.0,
    overwrite: Overwrite = False,
) -> None:
    """Write the C++ runner's input for the embedded model: sample, labels and sampler."""
    with checking():
        check_file(output, overwrite=overwrite)
    with working("finding the sampler's weights"):
        import torch

        from deltapass.demo.embedded import class_numbers, generators, load_embedded
        from deltapass.exporting.trajectory_file import linear_sampler, write_trajectory

        images = count or 20
        pipeline = load_embedded()
        config = pipeline.transformer.config
        size, null = config.sample_size, config.num_embeds_ada_norm
        noise = [
            torch.randn(1, config.in_channels, size, size, generator=generator)
            for generator in generators(seed, images)
        ]
        labels = class_numbers(pipeline, images) + [null] * images
        with whole_file(output) as aside:
            write_trajectory(
                aside,
                torch.cat(noise) * float(pipeline.scheduler.init_noise_sigma),
                linear_sampler(pipeline.scheduler, steps),
                {"class_labels": torch.tensor(labels)},
                guidance=guidance,
            )
    say_written("input", output)
