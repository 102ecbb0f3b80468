"""The command `deltapass export`, and what it says of the bundle it wrote."""

from __future__ import annotations

import re
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer
from rich.console import Console
from rich.table import Column
from rich.table import Table as RichTable

from deltapass.cli.command_line import (
    BudgetShare,
    Call,
    Count,
    EnginePairs,
    Model,
    OptionPairs,
    Overwrite,
    Pairs,
    ScheduleName,
    backend_options,
    checking,
    output_option,
    parse_call,
    parse_pairs,
    working,
)
from deltapass.cli.models import check_model
from deltapass.cli.outputs import check_new_folder
from deltapass.errors import counted
from deltapass.options import check_format, parse_export_options

if TYPE_CHECKING:
    from deltapass.bundles.manifest import BundlePlan

# Arguments of `export` that are no backend options -> what the command calls them.
FLAGS: Final = MappingProxyType(
    {
        **{name: f"--{name}" for name in ("steps", "format", "batch", "verify", "overwrite")},
        **{"engine": "--engine", "dynamic_shapes": "--dim", "path": "--output"},
        **dict.fromkeys(("model", "args", "kwargs"), "the argument MODEL"),
    }
)
Ranges = dict[str, dict[int, tuple[int, int]]]


def export_command(  # noqa: PLR0913, PLR0917 - one parameter an option is how typer is told of them
    model: Model = "embedded",
    output: Annotated[Path, output_option("Folder to write.")] = Path("bundle"),
    format: Annotated[str, typer.Option(help="onnx, aoti or tensorrt.")] = "onnx",
    steps: Annotated[
        int | None, typer.Option(min=1, help="Steps of every trajectory, if always the same.")
    ] = None,
    schedule: ScheduleName = None,
    budget: BudgetShare = None,
    option: OptionPairs = None,
    engine: EnginePairs = None,
    batch: Annotated[str | None, typer.Option(help="Least and greatest batch: 1:8.")] = None,
    dim: Annotated[
        Pairs, typer.Option(help="A dimension that may vary: hidden_states.2=16:64.")
    ] = None,
    call: Call = None,
    count: Count = None,
    verify: Annotated[bool, typer.Option(help="Run what was written and compare.")] = True,
    overwrite: Overwrite = False,
) -> None:
    """Write a model as a plan bundle: engines with the cache inside."""
    options = backend_options(option, schedule, budget, FLAGS)
    options |= {} if steps is None else {"steps": steps}
    settings = parse_pairs(engine, given_by="--engine")
    pipeline_call, ranges = parse_call(call), parse_dimensions(dim or [])
    batches = None if batch is None else parse_range(batch, "--batch")
    with checking():
        check_format(format)
        parse_export_options(options)
        check_model(model, call=call is not None, count=count is not None)
        check_new_folder(output, overwrite=overwrite)
    with working(f"exporting as {format}"):
        from deltapass.cli.sources import dimensions, load_source
        from deltapass.exporting.write import export

        judge_format_and_place(format, settings, output, overwrite=overwrite)
        plan = export(
            *load_source(model, pipeline_call, count or 20),
            output,
            format=format,
            batch=batches,
            dynamic_shapes=dimensions(ranges),
            verify=verify,
            overwrite=overwrite,
            engine=settings,
            **options,
        )
    say_plan(plan, output)


def judge_format_and_place(
    format: str, settings: dict[str, Any], place: Path, *, overwrite: bool
) -> None:
    """What only the format and the folder's contents tell, before a model is loaded.

    Raises:
        OptionError: If the format does not take these settings.
        ExportError: If what lies at `place` is no bundle.
    """
    from deltapass.bundles.folder import refuse_existing
    from deltapass.bundles.formats import load_format

    load_format(format).check(settings)
    refuse_existing(place.resolve(), overwrite=overwrite)


def say_plan(plan: BundlePlan, folder: Path) -> None:
    """What was written, on stdout."""
    console = Console()
    console.print(segment_table(plan))
    console.print(summary(plan, folder), highlight=False, markup=False, soft_wrap=True)


def parse_range(text: str, given_by: str) -> tuple[int, int]:
    """`1:8` -> (1, 8)."""
    found = re.fullmatch(r"(\d+):(\d+)", text, re.ASCII)
    if found is None or not 1 <= int(found[1]) < int(found[2]) < 2**31:
        message = f"{text!r} is not least:greatest, such as 1:8"
        raise typer.BadParameter(message, param_hint=given_by)
    return int(found[1]), int(found[2])


def parse_dimensions(pairs: list[str]) -> Ranges:
    """`["hidden_states.2=16:64"]` -> {"hidden_states": {2: (16, 64)}}."""
    ranges: Ranges = {}
    for pair in pairs:
        found = re.fullmatch(r"(\w+)\.(\d+)=(.+)", pair)
        if found is None:
            message = f"{pair!r} is not input.dimension=least:greatest"
            raise typer.BadParameter(message, param_hint="--dim")
        name, place = found[1], int(found[2])
        if place in ranges.get(name, {}):
            raise typer.BadParameter(f"{name}.{place} is given twice", param_hint="--dim")
        ranges.setdefault(name, {})[place] = parse_range(found[3], "--dim")
    return ranges


def segment_table(plan: BundlePlan) -> RichTable:
    """One row a segment."""
    numbers = (
        Column(title, justify="right") for title in ("file bytes", "GMACs full", "largest error")
    )
    table = RichTable("segment", *numbers, box=None, pad_edge=False)
    errors = (plan.verified or {}).get("segments", {})
    for segment in plan.segments:
        table.add_row(
            segment.name,
            str(plan.files[segment.file].bytes),
            f"{segment.macs.full / 1e9:.3f}",
            f"{errors[segment.name]:.1e}" if segment.name in errors else "-",
        )
    return table


def summary(plan: BundlePlan, folder: Path) -> str:
    """What a person wants to know of a bundle, in a few lines."""
    size = sum(spec.bytes for spec in plan.files.values())
    verified = "not verified"
    if plan.verified is not None:
        worst = max(plan.verified["variants"].values())
        verified = (
            f"verified with {plan.verified['by']}: every variant within {worst:.1e} of the "
            f"model's largest value (tolerance {plan.verified['tolerance']:.0e})"
        )
    return (
        f"{folder}: {plan.format}, {counted(len(plan.segments), 'segment')}, "
        f"{counted(len(plan.variants), 'variant')}, "
        f"{counted(size, 'byte')}; the weights alone are {plan.weights['bytes']}\n"
        f"{counted(len(plan.table), 'step')}: "
        f"expected {plan.macs['expected_speedup']:.2f}x by full MACs\n"
        f"{verified}"
    )
