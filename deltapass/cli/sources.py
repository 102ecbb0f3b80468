"""Models to explain, export or run: the embedded one, a folder's, or a factory's.

Gives the denoiser with one call of it. For a pipeline's folder the call is the first one that the
pipeline itself makes: nobody knows better what its denoiser is given.
"""

from __future__ import annotations

import importlib
import inspect
import operator
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from deltapass.cli.models import EMBEDDED, check_source, is_folder
from deltapass.errors import ModelSourceError
from deltapass.libraries import needs
from deltapass.pipelines.attach import denoisers
from deltapass.pipelines.first_call import Call, first_call, said

Source = Call


def load_source(model: str, call: Mapping[str, Any] | None = None, count: int = 1) -> Source:
    """A denoiser and one call of it.

    Args:
        model: 'embedded', a folder, or module:factory.
        call: For a folder: how to call its pipeline.
        count: For the embedded model: images; guidance doubles them.

    Raises:
        ModelSourceError: If it is none of these, or gives no model.
        PipelineCallError: If the pipeline refuses the call.
        MissingLibraryError: If diffusers is needed and not installed.
    """
    check_source(model)
    if model == EMBEDDED:
        from deltapass.demo.compare import DemoSettings, example_call
        from deltapass.demo.embedded import load_embedded

        pipeline = load_embedded()
        args, kwargs = example_call(pipeline, DemoSettings(count=count, options={}))
        return pipeline.transformer, args, kwargs
    if is_folder(model):
        return first_call(load_pipeline(Path(model)), call or {})
    return _model_made_by(model)


def load_pipeline(folder: Path) -> Any:
    """A diffusers pipeline from a folder on disk; no network is used.

    Raises:
        MissingLibraryError: If diffusers is not installed.
        ModelSourceError: If diffusers cannot load the folder, or the pipeline has no denoiser.
    """
    with needs("diffusers", "demo"):
        from diffusers import DiffusionPipeline
        from diffusers.utils import logging
    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()  # the command says itself what it does
    try:
        pipeline = DiffusionPipeline.from_pretrained(str(folder), local_files_only=True)
    except Exception as error:
        raise ModelSourceError(str(folder), f"diffusers says {said(error)}") from error
    finally:
        if shown:
            logging.enable_progress_bar()
    if not denoisers(pipeline):
        raise ModelSourceError(str(folder), f"{type(pipeline).__name__} has no denoiser")
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def dimensions(ranges: Mapping[str, Mapping[int, tuple[int, int]]]) -> dict[str, Any] | None:
    """{"hidden_states": {2: (16, 64)}} -> the same with torch's `Dim`; None without any."""
    made = {
        name: {
            place: torch.export.Dim(f"{name}_{place}", min=least, max=most)
            for place, (least, most) in places.items()
        }
        for name, places in ranges.items()
    }
    return made or None


def made_by(model: str) -> Any:
    """What a factory, module:factory, gives. An error inside it is its own.

    Raises:
        ModelSourceError: If there is none, or it cannot be called without arguments.
    """
    factory = _factory(model)
    try:
        inspect.signature(factory).bind()
    except (TypeError, ValueError) as error:
        raise ModelSourceError(model, f"it cannot be called without arguments: {error}") from error
    return factory()


def _model_made_by(model: str) -> Source:
    """The denoiser and the call that a factory gives."""
    made = made_by(model)
    wanted = (object, tuple | list, Mapping)
    if not isinstance(made, tuple) or len(made) != len(wanted):
        raise ModelSourceError(model, f"it gave {type(made).__name__}")
    if not callable(made[0]) or not all(map(isinstance, made, wanted)):
        raise ModelSourceError(model, f"it gave {', '.join(type(part).__name__ for part in made)}")
    return made[0], tuple(made[1]), dict(made[2])


def _factory(model: str) -> Any:
    module, _, factory = model.partition(":")
    # Unlike `python -m`, an installed command does not look for modules where it is started.
    sys.path.insert(0, str(Path.cwd()))
    try:
        found = importlib.import_module(module)
    except ImportError as error:
        raise ModelSourceError(model, str(error)) from error
    finally:
        sys.path.remove(str(Path.cwd()))
    try:
        made = operator.attrgetter(factory)(found)
    except AttributeError as error:
        raise ModelSourceError(model, str(error)) from error
    if not callable(made):
        raise ModelSourceError(model, f"{factory} is no function, but {type(made).__name__}")
    return made
