"""The command `deltapass tune`: a schedule searched for a pipeline, its table and its picture."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Final

import typer
from rich.console import Console

from deltapass.cli.calibrate import Guidance, Source
from deltapass.cli.command_line import (
    Call,
    OptionPairs,
    Overwrite,
    Seed,
    checking,
    clean_errors,
    output_option,
    parse_call,
    parse_pairs,
    say_written,
)
from deltapass.cli.models import EMBEDDED, check_trajectories
from deltapass.cli.outputs import check_file, whole_file

Budget = Annotated[float | None, typer.Option("--budget", help="Share of the plain MACs: 0.5.")]
Milliseconds = Annotated[
    float | None, typer.Option("--milliseconds", help="Measured time of one batch to spend.")
]
Target = Annotated[
    str | None, typer.Option("--target", help="Quality to keep: '16 steps', or a value such as 38.")
]
StepCount = Annotated[int | None, typer.Option("--steps", min=1, help="Of the sampler: 20.")]
Trials = Annotated[int, typer.Option("--trials", min=1, help="Trials in all.")]
Seconds = Annotated[float | None, typer.Option("--seconds", help="Begin no trial after this time.")]
Samples = Annotated[int, typer.Option("--samples", min=1, help="Seeds of the search.")]
HeldOut = Annotated[int, typer.Option("--held-out", min=0, help="Other seeds, to measure on.")]
Batch = Annotated[int, typer.Option("--batch", min=1, help="Seeds sampled at once.")]
MetricName = Annotated[str, typer.Option("--metric", help="psnr or mse.")]
Storage = Annotated[
    str | None, typer.Option("--storage", help="File or database URL of the trials: *.journal.")
]
RayAddress = Annotated[
    str | None, typer.Option("--ray", help="Address of a Ray cluster, or 'local'.")
]
Workers = Annotated[int | None, typer.Option("--workers", min=1, help="Workers of Ray.")]
SCHEDULE_OUT: Final = output_option("Schedule file; the picture and the numbers go beside it.")


def tune_command(  # noqa: PLR0913, PLR0917 - one parameter an option is how typer is told
    source: Source = EMBEDDED,
    output: Annotated[Path, SCHEDULE_OUT] = Path("tuned.json"),
    budget: Budget = None,
    milliseconds: Milliseconds = None,
    target: Target = None,
    steps: StepCount = None,
    guidance: Guidance = None,
    call: Call = None,
    trials: Trials = 80,
    seconds: Seconds = None,
    samples: Samples = 8,
    held_out: HeldOut = 32,
    batch: Batch = 4,
    metric: MetricName = "psnr",
    storage: Storage = None,
    ray: RayAddress = None,
    workers: Workers = None,
    seed: Seed = 0,
    option: OptionPairs = None,
    overwrite: Overwrite = False,
) -> None:
    """Search the schedule whose samples are nearest to the plain ones, and measure it.

    Ctrl-C ends the search: what it has is written, and the same command goes on.
    """
    given, options = parse_call(call), parse_pairs(option)
    wanted: dict[str, Any] = {
        **{"budget": budget, "milliseconds": milliseconds, "target": parse_target(target)},
        **{"trials": trials, "seconds": seconds, "seed": seed, "metric": metric},
        **{"seeds": range(seed, seed + samples), "held_out": held_out, "batch": batch},
        **{"steps": steps, "options": options, "ray": ray, "workers": workers},
        "storage": str(output.with_suffix(".journal")) if storage is None else storage,
    }
    with checking():
        twice = steps is not None and "num_inference_steps" in given
        check_trajectories(source, call=bool(given), steps=twice, guidance=guidance is not None)
        check_file(output, overwrite=overwrite, endings=(".json",))
        for beside in _beside(output):
            check_file(beside, overwrite=overwrite)
    with clean_errors():
        from deltapass.cli.loops import trajectories
        from deltapass.tuning.search.tune import tune

        subject, calling = trajectories(source, given, guidance)
        write(tune(subject, call=calling, **wanted), output)


def _beside(output: Path) -> tuple[Path, Path]:
    """Where the picture and the numbers go."""
    return output.with_suffix(".png"), output.with_suffix(".table.json")


def write(found: Any, output: Path) -> None:
    """Show what was found, and write the schedule, if there is one, the picture and the numbers."""
    import json

    from deltapass.schedule.files import save_schedule
    from deltapass.tuning.search.pareto import save_pareto

    Console().print(found)
    picture, numbers = _beside(output)
    with whole_file(picture) as aside:
        save_pareto(found, aside)
    say_written("picture", picture)
    with whole_file(numbers) as aside:
        aside.write_text(json.dumps(found.to_dict(), indent=2) + "\n", encoding="utf-8")
    say_written("numbers", numbers)
    if found.found:
        with whole_file(output) as aside:
            save_schedule(found.schedule, aside)
        say_written("schedule", output)


def parse_target(text: str | None) -> dict[str, int] | float | None:
    """`"16 steps"` -> `{"plain_steps": 16}`, `"38"` -> `38.0`.

    Raises:
        typer.BadParameter: If it is neither.
    """
    if text is None:
        return None
    number, _, unit = text.partition(" ")
    try:
        return {"plain_steps": int(number)} if unit == "steps" else float(text)
    except ValueError as error:
        problem = f"{text!r} is neither a number nor '16 steps'"
        raise typer.BadParameter(problem, param_hint="--target") from error
