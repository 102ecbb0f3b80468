"""The command `deltapass demo`: an embedded model plainly and with deltapass, side by side."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Final

import typer
from rich.console import Console

from deltapass.cli.command_line import (
    BudgetShare,
    Guidance,
    OptionPairs,
    Overwrite,
    ScheduleName,
    Seed,
    Steps,
    backend_options,
    checking,
    clean_errors,
    output_option,
    say_written,
)
from deltapass.cli.outputs import check_file, whole_file
from deltapass.options import parse_options

# Backend options that are flags of the demo itself.
OWN_FLAGS: Final = MappingProxyType({"lowering": "--lowering", "steps": "--steps"})
PICTURE, NUMBERS = "demo.png", "demo.json"


class Embedded(StrEnum):
    """The trained models of the package."""

    GARMENTS = "garments"
    NOUNS = "nouns"


ShownModel = Annotated[
    Embedded,
    typer.Option(
        "--model", help="Grey, 28 blocks, ten classes; or in colour, 16 blocks, four attributes."
    ),
]
Rounds = Annotated[
    int | None, typer.Option(min=1, help="How often each method is timed: 3, or once with --quick.")
]


def demo_command(  # noqa: PLR0913, PLR0917 - one parameter an option is how typer is told of them
    output: Annotated[Path, output_option("Folder for picture and numbers.")] = Path("demo-output"),
    model: ShownModel = Embedded.GARMENTS,
    count: Annotated[
        int | None, typer.Option(min=1, help="Images to sample: 20, or 4 with --quick.")
    ] = None,
    seed: Seed = 0,
    steps: Steps = 20,
    guidance: Guidance = 2.0,
    rounds: Rounds = None,
    lowering: Annotated[str, typer.Option(help="inductor or eager.")] = "inductor",
    schedule: ScheduleName = None,
    budget: BudgetShare = None,
    option: OptionPairs = None,
    quick: Annotated[bool, typer.Option("--quick", help="Smallest form.")] = False,
    overwrite: Overwrite = False,
) -> None:
    """Sample an embedded model plainly and with deltapass, side by side."""
    options = backend_options(option, schedule, budget, OWN_FLAGS)
    with checking():
        parse_options({**options, "steps": steps, "lowering": lowering})
        for name in (PICTURE, NUMBERS):
            check_file(output / name, overwrite=overwrite)
    with clean_errors():
        from deltapass.demo.compare import DemoSettings, progress_bars, run_demo
        from deltapass.demo.numbers import outcome_table, write_json
        from deltapass.demo.picture import write_picture

        settings = DemoSettings(
            model=model.value,
            count=count or (4 if quick else 20),
            seed=seed,
            steps=steps,
            guidance=guidance,
            rounds=rounds or (1 if quick else 3),
            lowering=lowering,
            options=options,
        )
        with progress_bars(Console(stderr=True)) as progress:
            result = run_demo(settings, progress)
        Console().print(result.report, outcome_table(result), sep="\n")
        with whole_file(output / PICTURE) as aside:
            write_picture(result, aside)
        with whole_file(output / NUMBERS) as aside:
            write_json(result, aside)
    say_written("picture", output / PICTURE)
    say_written("numbers", output / NUMBERS)
