"""What all commands share: their options, arguments as JSON, errors without a traceback.

Nothing here, nor in a module of a command, imports torch: what can be said without it is said at
once, and the work is imported when it begins. Exit codes: 0 done; 1 begun and failed; 2 the
command cannot be followed as it stands, and nothing was begun.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, Final

import typer
from rich.console import Console
from rich.text import Text

from deltapass.errors import (
    ContradictoryOptionsError,
    DeltapassError,
    OptionError,
    UnknownLoweringError,
    UnknownOptionError,
)

FAILED, USAGE = 1, 2
# Known only once the work has begun, such as an option of a format, but the user's words still.
WORDS: Final = (OptionError, UnknownOptionError, ContradictoryOptionsError, UnknownLoweringError)
GREATEST_SEED: Final = 2**62

Pairs = list[str] | None

# ---- options that several commands take, under one name and with one meaning --------------------

Model = Annotated[
    str,
    typer.Argument(
        metavar="[MODEL]",
        help="'embedded', a pipeline's folder, or module:factory giving (model, args, kwargs).",
        show_default=True,
    ),
]
OptionPairs = Annotated[
    Pairs, typer.Option("--option", help="Backend option as name=value; may be repeated.")
]
EnginePairs = Annotated[
    Pairs, typer.Option("--engine", help="Option of the format as name=value; may be repeated.")
]
ScheduleName = Annotated[
    str | None, typer.Option("--schedule", help="Schedule name, or a .json or .toml file.")
]
BudgetShare = Annotated[
    float | None,
    typer.Option("--budget", help="Share of the plain model's MACs to spend: 0.6."),
]
Call = Annotated[
    str | None, typer.Option("--call", help="How to call a folder's pipeline, as JSON.")
]
Steps = Annotated[int, typer.Option("--steps", min=1, help="Steps of a trajectory.")]
Count = Annotated[int | None, typer.Option("--count", min=1, help="Images of the embedded model.")]
Seed = Annotated[
    int,
    typer.Option(
        "--seed", min=0, max=GREATEST_SEED, help="Seed of the first image; the others follow."
    ),
]
Overwrite = Annotated[
    bool, typer.Option("--overwrite", help="Replace what is there already.", show_default=False)
]


def finite(value: float | None) -> float | None:
    """A callback of options that are numbers: NaN and infinity are none.

    Raises:
        typer.BadParameter: If it is one of these.
    """
    if value is not None and not math.isfinite(value):
        raise typer.BadParameter(f"{value} is no finite number.")
    return value


Guidance = Annotated[
    float,
    typer.Option("--guidance", min=0.0, callback=finite, help="Classifier-free guidance; 1: none."),
]


def output_option(help: str) -> Any:
    """The option -o of every command that writes something."""
    return typer.Option("-o", "--output", help=help)


# ---- what is given ------------------------------------------------------------------------------


def backend_options(
    pairs: Pairs,
    schedule: str | None,
    budget: float | None,
    flags: Mapping[str, str],
) -> dict[str, Any]:
    """The options of the backend, from `--option`, `--schedule` and `--budget`.

    Raises:
        typer.BadParameter: If one is given in two places.
    """
    own = {"schedule": schedule, "budget": budget}
    given = {name: value for name, value in own.items() if value is not None}
    apart = {name: f"one of --{name} and --option" for name in given}
    return {**parse_pairs(pairs, {**flags, **apart}), **given}


def parse_pairs(
    pairs: Pairs, flags: Mapping[str, str] | None = None, *, given_by: str = "--option"
) -> dict[str, Any]:
    """`["interval=2", "schedule=none"]` -> `{"interval": 2, "schedule": "none"}`.

    Names in `flags` belong to the command itself, which takes them as what they are mapped to. They
    are refused here: of two places one would win.
    """
    options: dict[str, Any] = {}
    flags = flags or {}
    for pair in pairs or []:
        name, separator, text = pair.partition("=")
        if not separator or not name:
            raise typer.BadParameter(f"{pair!r} is not name=value", param_hint=given_by)
        if name in flags:
            raise typer.BadParameter(f"use {flags[name]} for it", param_hint=f"{given_by} {name}=")
        if name in options:
            raise typer.BadParameter(f"{name} is given twice", param_hint=f"{given_by} {name}=")
        try:
            options[name] = json.loads(text)
        except (ValueError, RecursionError):
            options[name] = text
    return options


def parse_call(text: str | None) -> dict[str, Any]:
    """The arguments of a pipeline, from JSON."""
    if text is None:
        return {}
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise typer.BadParameter(f"{text!r} is not JSON: {error}", param_hint="--call") from error
    if not isinstance(found, dict):
        raise typer.BadParameter(f"{text!r} is no JSON object", param_hint="--call")
    return found


# ---- what is said -------------------------------------------------------------------------------


class clean_errors:  # noqa: N801 - used as a statement
    """Show an error of ours as one line and exit with `code`, without a traceback."""

    def __init__(self, code: int = FAILED) -> None:
        self._code = code

    def __enter__(self) -> None:
        return None

    def __exit__(self, _: object, error: BaseException | None, __: object) -> None:
        inner = getattr(error, "inner_exception", error)
        if isinstance(inner, DeltapassError):
            say_error(str(inner))
            raise typer.Exit(USAGE if isinstance(inner, WORDS) else self._code) from error


def checking() -> clean_errors:
    """Around what is looked at before any work: what fails here, the user's words are to blame."""
    return clean_errors(USAGE)


@contextmanager
def working(what: str) -> Iterator[None]:
    """Around the work: says in a terminal what is being done, and errors as they should be."""
    console = Console(stderr=True)
    with clean_errors():
        if not console.is_terminal:
            yield
            return
        with console.status(what):
            yield


def say_error(text: str) -> None:
    """One line to stderr, however narrow the terminal and whatever bytes a file's name holds."""
    shown = text.encode("utf-8", "backslashreplace").decode()
    # As Text: brackets in a message, as in 'deltapass[demo]', are not markup.
    line = Text.assemble(("error: ", "red"), " ".join(shown.split()))
    Console(stderr=True).print(line, soft_wrap=True)


def say_written(what: str, path: Path) -> None:
    """Where something was written."""
    shown = str(path).encode("utf-8", "backslashreplace").decode()
    Console().print(Text(f"{what}: {shown}"), soft_wrap=True)
