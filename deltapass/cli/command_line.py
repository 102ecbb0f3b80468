"""What all commands share: option pairs, arguments as JSON, and errors without a traceback."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import typer
from rich.console import Console
from rich.text import Text

from deltapass.errors import DeltapassError

Pairs = list[str] | None


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
        if not separator:
            raise typer.BadParameter(f"{pair!r} is not name=value", param_hint=given_by)
        if name in flags:
            raise typer.BadParameter(f"use {flags[name]} for it", param_hint=f"{given_by} {name}=")
        if name in options:
            raise typer.BadParameter(f"{name} is given twice", param_hint=f"{given_by} {name}=")
        try:
            options[name] = json.loads(text)
        except json.JSONDecodeError:
            options[name] = text
    return options


def parse_call(text: str) -> dict[str, Any]:
    """The arguments of a pipeline, from JSON."""
    try:
        found = json.loads(text)
    except json.JSONDecodeError as error:
        raise typer.BadParameter(f"{text!r} is not JSON: {error}", param_hint="--call") from error
    if not isinstance(found, dict):
        raise typer.BadParameter(f"{text!r} is no JSON object", param_hint="--call")
    return found


class clean_errors:  # noqa: N801 - used as a statement
    """Show an error of ours as one message and exit with 1, without a traceback."""

    def __enter__(self) -> None:
        return None

    def __exit__(self, _: object, error: BaseException | None, __: object) -> None:
        inner = getattr(error, "inner_exception", error)
        if isinstance(inner, DeltapassError):
            # As Text: brackets in a message, as in 'deltapass[demo]', are not markup.
            message = Text.assemble(("error: ", "red"), str(inner))
            Console(stderr=True).print(message)
            raise typer.Exit(1) from error
