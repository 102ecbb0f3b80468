"""Trajectories for the commands that fit or search a schedule; loads torch."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from deltapass.cli.models import EMBEDDED, NAMES, is_folder
from deltapass.cli.sources import load_pipeline, made_by

GUIDANCE: Final = 2.0  # of the embedded pipelines
PROMPTS: Final = 256  # of the model of attributes


def trajectories(
    source: str, call: Mapping[str, Any], guidance: float | None = None
) -> tuple[Any, Mapping[str, Any] | None]:
    """A pipeline or a loop, and how it is called: the first arguments of `deltapass.calibrate`.

    Args:
        source: An embedded model's name, a pipeline's folder, or module:factory giving a pipeline,
            (pipeline, call), or a loop.
        call: How to call the pipeline of a folder.
        guidance: Of an embedded pipeline, whose classes or prompts are dealt out in turn.

    Raises:
        ModelSourceError: If it is none of these, or cannot be loaded.
        MissingLibraryError: If diffusers is needed and not installed.
    """
    if source in NAMES:
        return _embedded(source, GUIDANCE if guidance is None else guidance)
    if is_folder(source):
        return load_pipeline(Path(source)), dict(call)
    made = made_by(source)
    if isinstance(made, tuple) and len(made) == 2 and isinstance(made[1], Mapping):
        return made
    return made, None


def _embedded(name: str, guidance: float) -> tuple[Any, Mapping[str, Any]]:
    from deltapass.demo.embedded import class_numbers, load_embedded

    if name == "nouns":
        attributes = load_embedded("nouns")
        prompts = attributes.vocabulary.random_prompts(PROMPTS)
        return attributes, {"prompt": prompts, "guidance_scale": guidance}
    classes = load_embedded() if name == EMBEDDED else load_embedded(name)
    numbers = class_numbers(classes, classes.transformer.config.num_embeds_ada_norm)
    return classes, {"class_labels": numbers, "guidance_scale": guidance}
