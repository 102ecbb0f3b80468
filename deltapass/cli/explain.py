"""The command `deltapass explain`: what the backend would do with a model."""

from __future__ import annotations

from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Final

from rich.console import Console

from deltapass.cli.command_line import (
    BudgetShare,
    Call,
    Count,
    Model,
    OptionPairs,
    Overwrite,
    ScheduleName,
    Steps,
    backend_options,
    checking,
    output_option,
    parse_call,
    say_written,
    working,
)
from deltapass.cli.models import check_model
from deltapass.cli.outputs import check_file, whole_file
from deltapass.options import parse_options

OWN_FLAGS: Final = MappingProxyType({"steps": "--steps"})


def explain_command(  # noqa: PLR0913, PLR0917 - one parameter an option is how typer is told of them
    model: Model = "embedded",
    output: Annotated[Path | None, output_option("File for the report, as text.")] = None,
    steps: Steps = 20,
    schedule: ScheduleName = None,
    budget: BudgetShare = None,
    option: OptionPairs = None,
    call: Call = None,
    count: Count = None,
    overwrite: Overwrite = False,
) -> None:
    """Say what the backend would do with a model, without running it."""
    options = {**backend_options(option, schedule, budget, OWN_FLAGS), "steps": steps}
    pipeline_call = parse_call(call)
    with checking():
        parse_options(options)
        check_model(model, call=call is not None, count=count is not None)
        if output is not None:
            check_file(output, overwrite=overwrite)
    with working("tracing the model"):
        import deltapass
        from deltapass.cli.sources import load_source

        denoiser, args, kwargs = load_source(model, pipeline_call, count or 1)
        report = deltapass.explain(denoiser, *args, options=options, **kwargs)
        if output is not None:
            with whole_file(output) as aside:
                aside.write_text(f"{report}\n", encoding="utf-8")
    Console().print(report)
    if output is not None:
        say_written("report", output)
