"""The command `deltapass calibrate`: a schedule file with weights fitted to a pipeline."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from deltapass.cli.command_line import (
    Call,
    OptionPairs,
    Overwrite,
    ScheduleName,
    Seed,
    checking,
    clean_errors,
    finite,
    output_option,
    parse_call,
    parse_pairs,
    say_written,
)
from deltapass.cli.models import EMBEDDED, check_trajectories
from deltapass.cli.outputs import check_file, whole_file

Source = Annotated[
    str,
    typer.Argument(
        metavar="[PIPELINE]",
        help="'garments' ('embedded'), 'nouns', a pipeline's folder, or module:factory giving a "
        "pipeline, (pipeline, call), or a function loop(seeds, session).",
        show_default=True,
    ),
]
Guidance = Annotated[
    float | None,
    typer.Option(
        "--guidance", min=0.0, callback=finite, help="Guidance of an embedded model: 2; 1: none."
    ),
]
Samples = Annotated[int, typer.Option("--samples", min=1, help="Trajectories.")]
Batch = Annotated[int, typer.Option("--batch", min=1, help="Of them at once.")]
Deltas = Annotated[
    int, typer.Option("--weights", min=1, max=4, help="Deltas a cached step reads at most.")
]
PerBranch = Annotated[bool, typer.Option("--per-branch", help="Fit branches apart.")]
PerStream = Annotated[bool, typer.Option("--per-stream", help="Fit streams apart.")]
Regularisation = Annotated[
    float,
    typer.Option(
        "--regularisation",
        min=0.0,
        callback=finite,
        help="Trajectories that the predictor's weights count for.",
    ),
]


def calibrate_command(  # noqa: PLR0913, PLR0917 - one parameter an option is how typer is told
    source: Source = EMBEDDED,
    output: Annotated[Path, output_option("Schedule file to write.")] = Path("calibrated.json"),
    schedule: ScheduleName = None,
    steps: Annotated[int | None, typer.Option(min=1, help="Steps of the sampler: 20.")] = None,
    guidance: Guidance = None,
    call: Call = None,
    samples: Samples = 8,
    batch: Batch = 2,
    seed: Seed = 0,
    weights: Deltas = 3,
    per_branch: PerBranch = False,
    per_stream: PerStream = False,
    regularisation: Regularisation = 2.0,
    option: OptionPairs = None,
    overwrite: Overwrite = False,
) -> None:
    """Fit the weights of a schedule's cached steps to a pipeline, and write the schedule."""
    given, options = parse_call(call), parse_pairs(option, {"schedule": "--schedule"})
    with checking():
        twice = steps is not None and "num_inference_steps" in given
        check_trajectories(source, call=bool(given), steps=twice, guidance=guidance is not None)
        check_file(output, overwrite=overwrite, endings=(".json",))
    with clean_errors():
        from deltapass.cli.loops import trajectories
        from deltapass.schedule.files import save_schedule
        from deltapass.tuning.fit.calibrate import calibrate

        subject, how = trajectories(source, given, guidance)
        found = calibrate(
            subject,
            schedule=schedule,
            call=how,
            steps=steps,
            seeds=range(seed, seed + samples),
            batch=batch,
            weights=weights,
            per_branch=per_branch,
            per_stream=per_stream,
            regularisation=regularisation,
            options=options,
        )
        Console().print(found)
        with whole_file(output) as aside:
            save_schedule(found.schedule, aside)
    say_written("schedule", output)
