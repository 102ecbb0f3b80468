"""The command `deltapass bench`: suites measured, and the page of them; two runs compared."""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, Final

import typer

from deltapass.cli.command_line import FAILED, Call, checking, clean_errors, parse_call, say_written

OUTPUT: Final = Path("bench-output")
COMPARE: Final = "compare"
MACS: Final = "macs"
OF_MACS: Final = ("names", "model", "call", "output")
OF_SUITE: Final = ("images", "rounds", "timed")
OF_ENVIRONMENT: Final = ("device", "dtype", "lowering", "threads", "batch")
AS_THEY_ARE: Final = ("prompts", "env", "check", "ray", "random_weights")


class Stage(StrEnum):
    """What a run consists of."""

    DRAW = "draw"
    TIME = "time"
    JUDGE = "judge"
    PAGE = "page"


Names = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[SUITE]...",
        help="table1 ... fig12, 'all', a suite's .toml file; or 'compare A B' for two runs; or "
        "'macs', the paper's MACs counted again, or those of --model. Nothing: what there is.",
    ),
]
Models = Annotated[
    list[str] | None,
    typer.Option(
        "--model",
        help="'garments', 'nouns', a pipeline's folder, or module:factory giving a pipeline or "
        "(pipeline, call). May be repeated; by default the suite's own.",
    ),
]
Prompts = Annotated[
    Path | None,
    typer.Option(help="Prompts, one a line; .jsonl: JSON with the arguments of a call."),
]
Images = Annotated[int | None, typer.Option(min=1, help="Of each method, in place of the suite's.")]
Rounds = Annotated[int | None, typer.Option(min=1, help="How often every method is timed.")]
Timed = Annotated[int | None, typer.Option(min=0, help="Images of a batch that is timed; 0: none.")]
Device = Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1.")]
DType = Annotated[str | None, typer.Option(help="float32, bfloat16 or float16.")]
LoweringName = Annotated[str | None, typer.Option(help="Of what is timed: inductor or eager.")]
Threads = Annotated[int | None, typer.Option(min=1, help="Of torch.")]
Batch = Annotated[int | None, typer.Option(min=1, help="Images that are drawn together.")]
EnvironmentFile = Annotated[
    Path | None, typer.Option("--env", help="Environment file (TOML): where it is measured.")
]
Output = Annotated[
    Path | None,
    typer.Option(
        "-o", "--output", help="Folder of all results.", show_default=f"{OUTPUT}; macs: none"
    ),
]
Only = Annotated[Stage | None, typer.Option(help="Only this stage, on what the others left.")]
Check = Annotated[
    bool, typer.Option("--check", help="Say what would fail or be missing; draw nothing.")
]
RayAddress = Annotated[
    str | None,
    typer.Option("--ray", help="Address of a Ray cluster that draws and judges, or 'local'."),
]
RowNames = Annotated[
    list[str] | None, typer.Option("--row", help="Only this row and the reference; repeatable.")
]
RandomWeights = Annotated[
    bool, typer.Option("--random-weights", help="Its weights are random: judge no quality.")
]
Again = Annotated[list[str] | None, typer.Option("--time-again", hidden=True)]


def bench_command(  # noqa: PLR0913, PLR0917 - one parameter an option is how typer is told
    names: Names = None,
    model: Models = None,
    prompts: Prompts = None,
    call: Call = None,
    images: Images = None,
    rounds: Rounds = None,
    timed: Timed = None,
    device: Device = None,
    dtype: DType = None,
    lowering: LoweringName = None,
    threads: Threads = None,
    batch: Batch = None,
    env: EnvironmentFile = None,
    output: Output = None,
    only: Only = None,
    check: Check = False,
    ray: RayAddress = None,
    row: RowNames = None,
    random_weights: RandomWeights = False,
    time_again: Again = None,
) -> None:
    """Measure methods side by side: time, quality, memory, compiles; and write the page.

    Ctrl-C keeps what is done, and the same command goes on.
    """
    page = _done(names or [], {**locals()})
    if page is not None:
        say_written("page", page)


def _done(names: list[str], given: Mapping[str, Any]) -> Path | None:
    """What is asked, by the names of the parameters above."""
    call, only = parse_call(given["call"]), given["only"]
    with clean_errors():
        from deltapass.cli.bench_jobs import Asked, compare, list_suites, run

        if not names:
            list_suites()
            return None
        if names[0] == COMPARE:
            _compare(names[1:], compare)
            return None
        if names[0] == MACS:
            _macs(given, call)
            return None
        asked = Asked(
            names=tuple(names),
            models=tuple(given["model"] or ()),
            call=call,
            suite={name: given[name] for name in OF_SUITE},
            environment={name: given[name] for name in OF_ENVIRONMENT},
            only=None if only is None else only.value,
            rows=tuple(given["row"] or ()),
            again=tuple(given["time_again"] or ()),
            output=given["output"] or OUTPUT,
            **{name: given[name] for name in AS_THEY_ARE},
        )
        return run(asked)


def _compare(folders: list[str], compare: object) -> None:
    """Two runs, given as folders or records."""
    if len(folders) != 2:
        with checking():
            raise typer.BadParameter("compare takes two runs: deltapass bench compare A B")
    assert callable(compare)  # noqa: S101 - it was imported a line ago
    if compare(Path(folders[0]), Path(folders[1])):
        raise typer.Exit(FAILED)


def _macs(given: Mapping[str, Any], call: Mapping[str, Any]) -> None:
    """The paper's MACs, or those of models."""
    with checking():
        if len(given["names"]) > 1:
            raise typer.BadParameter("macs stands alone: deltapass bench macs [--model MODEL]")
        beyond = [name for name, value in given.items() if value and name not in OF_MACS]
        if beyond:
            raise typer.BadParameter(
                "macs draws nothing, and takes --model, --call and --output alone",
                param_hint=f"--{beyond[0].replace('_', '-')}",
            )
        if given["call"] is not None and not given["model"]:
            raise typer.BadParameter("it is for --model", param_hint="--call")
    from deltapass.cli.bench_macs import show_macs

    show_macs(given["model"] or (), call, given["output"])
