"""The command line: `deltapass demo`, `explain`, `export`, `run`, `trajectory`."""

from __future__ import annotations

from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Final

import typer
from rich.console import Console

import deltapass
from deltapass.cli.bundles import export_command
from deltapass.cli.command_line import Pairs, clean_errors, parse_pairs
from deltapass.cli.run import run_command, trajectory_command

app = typer.Typer(
    help="Faster diffusion transformers by Delta-Cache, in the compiler.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
app.command(name="export")(export_command)
app.command(name="run")(run_command)
app.command(name="trajectory")(trajectory_command)
# Backend options that are flags of the demo itself.
OWN_FLAGS: Final = MappingProxyType({"lowering": "--lowering", "steps": "--steps"})


def _version(wanted: bool) -> None:
    if wanted:
        Console().print(f"deltapass {deltapass.__version__}")
        raise typer.Exit


@app.callback()
def main(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show and exit.")
    ] = False,
) -> None:
    """Faster diffusion transformers by Delta-Cache, in the compiler."""


@app.command()
def demo(  # noqa: PLR0913, PLR0917 - one parameter an option is how typer is told of them
    count: Annotated[int, typer.Option(min=1, help="Images to sample.")] = 20,
    seed: Annotated[int, typer.Option(help="Seed of the first image; the others follow.")] = 0,
    steps: Annotated[int, typer.Option(min=1, help="Steps of the sampler.")] = 20,
    guidance: Annotated[float, typer.Option(help="Classifier-free guidance; 1 is none.")] = 2.0,
    rounds: Annotated[int, typer.Option(min=1, help="How often each method is timed.")] = 3,
    lowering: Annotated[str, typer.Option(help="inductor or eager.")] = "inductor",
    option: Annotated[
        Pairs, typer.Option(help="Backend option as name=value: schedule=..., interval=..., ...")
    ] = None,
    schedule: Annotated[str | None, typer.Option(help="Schedule name, or a file.")] = None,
    output: Annotated[Path, typer.Option(help="Folder for picture and numbers.")] = Path(
        "demo-output"
    ),
    quick: Annotated[bool, typer.Option(help="Smallest form: 4 images, 1 round.")] = False,
) -> None:
    """Sample the embedded model plainly and with deltapass, side by side."""
    console = Console()
    own = {} if schedule is None else {"schedule": "one of --schedule and --option"}
    options = parse_pairs(option, {**OWN_FLAGS, **own})
    if "order" in options:
        raise typer.BadParameter("the demo shows both orders", param_hint="--option order=")
    if schedule is not None:
        options["schedule"] = schedule
    with clean_errors():
        from deltapass.demo.compare import DemoSettings, progress_bars, run_demo
        from deltapass.demo.picture import outcome_table, write_json, write_picture

        settings = DemoSettings(
            count=4 if quick else count,
            seed=seed,
            steps=steps,
            guidance=guidance,
            rounds=1 if quick else rounds,
            lowering=lowering,
            options=options,
        )
        output.mkdir(parents=True, exist_ok=True)
        with progress_bars(console) as progress:
            result = run_demo(settings, progress)
        console.print(result.report)
        console.print(outcome_table(result))
        write_picture(result, output / "demo.png")
        write_json(result, output / "demo.json")
        console.print(f"picture: {output / 'demo.png'}   numbers: {output / 'demo.json'}")


@app.command()
def explain(
    model: Annotated[
        str,
        typer.Option(
            help="'embedded', a pipeline's folder, or module:factory giving (model, args, kwargs)."
        ),
    ] = "embedded",
    steps: Annotated[int, typer.Option(min=1, help="Steps of a trajectory.")] = 20,
    budget: Annotated[
        float | None, typer.Option(help="Share of the plain model's MACs to spend: 0.6.")
    ] = None,
    option: Annotated[
        Pairs, typer.Option(help="Backend option as name=value; may be repeated.")
    ] = None,
) -> None:
    """Say what the backend would do with a model, without running it."""
    console = Console()
    own = {} if budget is None else {"budget": "one of --budget and --option"}
    options = {"steps": steps, **parse_pairs(option, {"steps": "--steps", **own})}
    if budget is not None:
        options["budget"] = budget
    with clean_errors():
        from deltapass.cli.sources import load_source

        denoiser, args, kwargs = load_source(model)
        console.print(deltapass.explain(denoiser, *args, options=options, **kwargs))
