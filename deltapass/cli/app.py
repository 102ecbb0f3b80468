"""The command line: `deltapass bench`, `calibrate`, `demo`, `explain`, `export`, `run`, ..."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.console import Console

import deltapass
from deltapass.cli.bench import bench_command
from deltapass.cli.bundles import export_command
from deltapass.cli.calibrate import calibrate_command
from deltapass.cli.demo import demo_command
from deltapass.cli.explain import explain_command
from deltapass.cli.run import run_command
from deltapass.cli.trajectory import trajectory_command
from deltapass.cli.tune import tune_command

app = typer.Typer(
    help="Faster diffusion transformers by Delta-Cache, in the compiler.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
app.command(name="bench")(bench_command)
app.command(name="calibrate")(calibrate_command)
app.command(name="demo")(demo_command)
app.command(name="explain")(explain_command)
app.command(name="export")(export_command)
app.command(name="run")(run_command)
app.command(name="trajectory")(trajectory_command)
app.command(name="tune")(tune_command)


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
