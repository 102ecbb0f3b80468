"""Where a command is told to take a model from: judged by its words, before anything is loaded."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import typer

from deltapass.errors import ModelSourceError

EMBEDDED: Final = "embedded"
NAMES: Final = (EMBEDDED, "garments", "nouns")  # of embedded models; the first stands for garments
INDEX: Final = "model_index.json"


def is_folder(model: str) -> bool:
    """Whether it names the folder of a pipeline."""
    return (Path(model) / INDEX).is_file()


def check_model(model: str, *, call: bool, count: bool) -> None:
    """Refuse what no model can come from, and options that another kind of model takes.

    Args:
        model: 'embedded', a folder, or module:factory.
        call: Whether `--call` was given.
        count: Whether `--count` was given.

    Raises:
        ModelSourceError: If it is none of these.
        typer.BadParameter: If `call` or `count` would say nothing to such a model.
    """
    check_source(model)
    if call and not is_folder(model):
        raise typer.BadParameter(f"{model} is no pipeline's folder", param_hint="--call")
    if count and model != EMBEDDED:
        other = "say it in --call" if is_folder(model) else "the factory says it"
        raise typer.BadParameter(f"it is for 'embedded'; {other}", param_hint="--count")


def check_source(model: str) -> None:
    """Raise ModelSourceError for what is neither 'embedded', nor a folder, nor module:factory."""
    if model == EMBEDDED or is_folder(model):
        return
    if Path(model).is_dir():
        raise ModelSourceError(model, f"the folder holds no {INDEX}")
    module, separator, factory = model.partition(":")
    if not separator:
        problem = "it is a file" if Path(model).is_file() else "there is no such folder"
        raise ModelSourceError(model, problem)
    if not all(part.isidentifier() for part in (*module.split("."), *factory.split("."))):
        raise ModelSourceError(model, "that is no module:factory")


def check_trajectories(source: str, *, call: bool, steps: bool, guidance: bool) -> None:
    """Refuse what no trajectories can come from, and options that say nothing to such a source.

    Args:
        source: An embedded model's name, a folder, or module:factory.
        call: Whether `--call` was given.
        steps: Whether it names a number of steps too, besides `--steps`.
        guidance: Whether `--guidance` was given.

    Raises:
        ModelSourceError: If it is none of these.
        typer.BadParameter: If an option says nothing to it, or two say the same.
    """
    if source not in NAMES:
        check_source(source)
    if call and not is_folder(source):
        raise typer.BadParameter(f"{source} is no pipeline's folder", param_hint="--call")
    if steps:
        given = "--call has num_inference_steps"
        raise typer.BadParameter(f"{given}: give one of the two", param_hint="--steps")
    if guidance and source not in NAMES:
        other = "say it in --call" if is_folder(source) else "the factory says it"
        raise typer.BadParameter(f"it is for embedded models; {other}", param_hint="--guidance")
