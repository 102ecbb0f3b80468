"""The command `deltapass run`: sampling with a bundle in the place of a pipeline's denoiser."""

from __future__ import annotations

from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any, Final, cast

import typer
from rich.console import Console

from deltapass.cli.command_line import (
    Call,
    Count,
    EnginePairs,
    Overwrite,
    ScheduleName,
    Seed,
    checking,
    output_option,
    parse_call,
    parse_pairs,
    say_written,
    working,
)
from deltapass.cli.models import EMBEDDED, is_folder
from deltapass.cli.outputs import check_file, whole_file
from deltapass.errors import BundleError, ModelSourceError
from deltapass.options import DEFAULT_STEPS, parse_options
from deltapass.schedule.explicit import AnySchedule

PICTURES: Final = (".png", ".jpg", ".jpeg", ".webp")
# Arguments of a pipeline that are options of the command.
OWN_ARGUMENTS: Final = MappingProxyType(
    {"generator": "use --seed for it", "output_type": "the command takes arrays of numbers"}
)


def run_command(  # noqa: PLR0913, PLR0917 - one parameter an option is how typer is told of them
    bundle: Annotated[Path, typer.Argument(help="Folder that export wrote.")],
    output: Annotated[Path, output_option("Picture to write.")] = Path("grid.png"),
    pipeline: Annotated[str, typer.Option(help="'embedded', or a pipeline's folder.")] = EMBEDDED,
    count: Count = None,
    seed: Seed = 0,
    steps: Annotated[int | None, typer.Option(min=1, help="Steps of the sampler: 20.")] = None,
    schedule: ScheduleName = None,
    call: Call = None,
    engine: EnginePairs = None,
    compare: Annotated[
        bool, typer.Option("--compare", help="Sample the plain model too, and compare.")
    ] = False,
    overwrite: Overwrite = False,
) -> None:
    """Sample with a bundle in the place of the pipeline's denoiser."""
    settings = parse_pairs(engine, given_by="--engine")
    given = _pipeline_call(parse_call(call), steps, count)
    with checking():
        chosen = None if schedule is None else _named(schedule)
        if pipeline != EMBEDDED and not is_folder(pipeline):
            raise ModelSourceError(pipeline, "it is no pipeline's folder")
        if count and pipeline != EMBEDDED:
            raise typer.BadParameter("it is for 'embedded'; say it in --call", param_hint="--count")
        if not bundle.is_dir():
            there = "is no folder" if bundle.exists() else "does not exist"
            raise BundleError(f"{bundle} {there}", "Give the folder that export wrote")
        check_file(output, overwrite=overwrite, endings=PICTURES)
    with working(f"sampling with {bundle}"):
        from deltapass.cli.sampling import RunJob, run_bundle, write_images

        job = RunJob(
            pipeline=pipeline, count=count, seed=seed, call=given, schedule=chosen, compare=compare
        )
        outcome = run_bundle(bundle, job, settings)
        with whole_file(output) as aside:
            write_images(outcome.images, aside)
    console = Console()
    console.print(outcome.report, highlight=False)
    console.print(outcome.text, highlight=False)
    say_written("picture", output)


def _named(schedule: str) -> AnySchedule:
    return cast("AnySchedule", parse_options({"schedule": schedule}).schedule)


def _pipeline_call(given: dict[str, Any], steps: int | None, count: int | None) -> dict[str, Any]:
    """The pipeline's arguments; what is an option of the command too is given in one place."""
    for name, problem in OWN_ARGUMENTS.items():
        if name in given:
            raise typer.BadParameter(f"{name}: {problem}", param_hint="--call")
    for name, value, flag in (
        ("num_inference_steps", steps, "--steps"),
        ("class_labels", count, "--count"),
    ):
        if name in given and value is not None:
            raise typer.BadParameter(f"{name} is given by {flag} too", param_hint="--call")
    return {"num_inference_steps": steps or DEFAULT_STEPS, **given}
