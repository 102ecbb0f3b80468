"""The command `deltapass export`, and what it says of the bundle it wrote."""

from __future__ import annotations

import re
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any, Final

import typer
from rich.console import Console
from rich.table import Column
from rich.table import Table as RichTable

from deltapass.bundles.manifest import BundlePlan
from deltapass.cli.command_line import Pairs, clean_errors, parse_call, parse_pairs

# Arguments of `export` that are no backend options -> what the command calls them.
FLAGS: Final = MappingProxyType(
    {
        **{name: f"--{name}" for name in ("steps", "format", "batch", "verify", "overwrite")},
        **{"engine": "--engine", "dynamic_shapes": "--dim", "path": "--output"},
        **dict.fromkeys(("model", "args", "kwargs"), "the argument MODEL"),
    }
)


def export_command(  # noqa: PLR0913, PLR0917 - one parameter an option is how typer is told of them
    model: Annotated[
        str, typer.Argument(help="'embedded', a pipeline's folder, or module:factory.")
    ] = "embedded",
    output: Annotated[Path, typer.Option("-o", "--output", help="Folder to write.")] = Path(
        "bundle"
    ),
    format: Annotated[str, typer.Option(help="onnx, aoti or tensorrt.")] = "onnx",
    steps: Annotated[
        int | None, typer.Option(min=1, help="Steps of every trajectory, if always the same.")
    ] = None,
    option: Annotated[
        Pairs, typer.Option(help="Backend option as name=value; may be repeated.")
    ] = None,
    engine: Annotated[
        Pairs, typer.Option(help="Option of the format as name=value; may be repeated.")
    ] = None,
    batch: Annotated[str | None, typer.Option(help="Least and greatest batch: 1:8.")] = None,
    dim: Annotated[
        Pairs, typer.Option(help="A dimension that may vary: hidden_states.2=16:64.")
    ] = None,
    call: Annotated[str, typer.Option(help="How to call the pipeline, as JSON.")] = "{}",
    count: Annotated[int, typer.Option(min=1, help="Images of the embedded model.")] = 20,
    verify: Annotated[bool, typer.Option(help="Run what was written and compare.")] = True,
    overwrite: Annotated[bool, typer.Option(help="Replace a bundle that is there.")] = False,
) -> None:
    """Write a model as a plan bundle: engines with the cache inside."""
    console = Console()
    options, settings = parse_pairs(option, FLAGS), parse_pairs(engine, given_by="--engine")
    with clean_errors():
        from deltapass.cli.sources import load_source
        from deltapass.exporting.write import export

        denoiser, args, kwargs = load_source(model, parse_call(call), count)
        plan = export(
            denoiser,
            args,
            kwargs,
            output,
            format=format,
            batch=parse_range(batch) if batch else None,
            dynamic_shapes=parse_dimensions(dim or []),
            verify=verify,
            overwrite=overwrite,
            engine=settings,
            **({"steps": steps} if steps else {}),
            **options,
        )
    console.print(segment_table(plan))
    console.print(summary(plan, output), highlight=False)


def parse_range(text: str) -> tuple[int, int]:
    """`1:8` -> (1, 8)."""
    found = re.fullmatch(r"(\d+):(\d+)", text)
    if found is None or not 1 <= int(found[1]) <= int(found[2]):
        raise typer.BadParameter(f"{text!r} is not least:greatest, such as 1:8")
    return int(found[1]), int(found[2])


def parse_dimensions(pairs: list[str]) -> dict[str, dict[int, Any]] | None:
    """`["hidden_states.2=16:64"]` -> {"hidden_states": {2: Dim}}; None without any."""
    from torch.export import Dim

    shapes: dict[str, dict[int, Any]] = {}
    for pair in pairs:
        found = re.fullmatch(r"(\w+)\.(\d+)=(.+)", pair)
        if found is None:
            raise typer.BadParameter(f"{pair!r} is not input.dimension=least:greatest")
        least, most = parse_range(found[3])
        name = f"{found[1]}_{found[2]}"
        if int(found[2]) in shapes.get(found[1], {}):
            raise typer.BadParameter(f"{found[1]}.{found[2]} is given twice", param_hint="--dim")
        shapes.setdefault(found[1], {})[int(found[2])] = Dim(name, min=least, max=most)
    return shapes or None


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
        f"{folder}: {plan.format}, {len(plan.segments)} segments, {len(plan.variants)} variants, "
        f"{size} bytes; the weights alone are {plan.weights['bytes']}\n"
        f"{len(plan.table)} steps: expected {plan.macs['expected_speedup']:.2f}x by full MACs\n"
        f"{verified}"
    )
