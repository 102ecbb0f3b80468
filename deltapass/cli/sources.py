"""Where a model to explain or export comes from: the embedded one, a folder, or a factory.

Gives the denoiser with one call of it. For a pipeline's folder the call is the first one that the
pipeline itself makes: nobody knows better what its denoiser is given.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, final

import torch

from deltapass.errors import OptionError
from deltapass.libraries import needs
from deltapass.pipelines.attach import denoisers

Source = tuple[Any, tuple[Any, ...], dict[str, Any]]

ALLOWED: Final = (
    "'embedded', the folder of a diffusers pipeline, or module:factory whose call gives "
    "(model, args, kwargs)"
)
INDEX: Final = "model_index.json"


def load_source(model: str, call: Mapping[str, Any] | None = None, count: int = 1) -> Source:
    """A denoiser and one call of it.

    Args:
        model: 'embedded', a folder, or module:factory.
        call: For a folder: how to call its pipeline.
        count: For the embedded model: images; guidance doubles them.

    Raises:
        OptionError: If it is none of these, or the pipeline does not call its denoiser.
        MissingLibraryError: If diffusers is needed and not installed.
    """
    if model == "embedded":
        from deltapass.demo.compare import DemoSettings, example_call
        from deltapass.demo.embedded import load_embedded

        pipeline = load_embedded()
        args, kwargs = example_call(pipeline, DemoSettings(count=count, options={}))
        return pipeline.transformer, args, kwargs
    if (Path(model) / INDEX).is_file():
        return first_call(load_pipeline(Path(model)), call or {})
    made = _factory(model)()
    if not (isinstance(made, tuple) and len(made) == len(("model", "args", "kwargs"))):
        raise OptionError("model", f"{model}, which gave {type(made).__name__}", ALLOWED)
    return made[0], tuple(made[1]), dict(made[2])


def load_pipeline(folder: Path) -> Any:
    """A diffusers pipeline from a folder on disk; no network is used.

    Raises:
        MissingLibraryError: If diffusers is not installed.
        OptionError: If diffusers cannot load the folder.
    """
    with needs("diffusers", "demo"):
        from diffusers import DiffusionPipeline
    try:
        pipeline = DiffusionPipeline.from_pretrained(str(folder), local_files_only=True)
    except (OSError, ValueError) as error:
        raise OptionError("model", f"{folder} ({error})", ALLOWED) from error
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def first_call(pipeline: Any, call: Mapping[str, Any]) -> Source:
    """The denoiser of a pipeline, with the inputs of its first call.

    Raises:
        OptionError: If the pipeline has no denoiser, refuses the call, or never calls it.
    """
    found = denoisers(pipeline)
    if not found:
        raise OptionError("model", type(pipeline).__name__, "a pipeline with a `transformer`")
    denoiser = next(iter(found.values())).eval().requires_grad_(False)
    caught: list[tuple[tuple[Any, ...], dict[str, Any]]] = []

    def catch(_: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        caught.append((args, kwargs))
        raise _CaughtError

    handle = denoiser.register_forward_pre_hook(catch, with_kwargs=True)
    try:
        with torch.no_grad():
            pipeline(**call)
    except _CaughtError:
        pass
    except (TypeError, ValueError, AttributeError) as error:
        allowed = f"arguments that {type(pipeline).__name__} takes; it says: {error}"
        raise OptionError("call", dict(call), allowed) from error
    finally:
        handle.remove()
    if not caught:
        raise OptionError("call", dict(call), "arguments with which the denoiser is called")
    return denoiser, *caught[0]


@final
class _CaughtError(Exception):
    """Stops a pipeline at the first call of its denoiser."""


def _factory(model: str) -> Any:
    module, separator, factory = model.partition(":")
    if not separator:
        raise OptionError("model", model, ALLOWED)
    # Unlike `python -m`, an installed command does not look for modules where it is started.
    sys.path.insert(0, str(Path.cwd()))
    try:
        return getattr(importlib.import_module(module), factory)
    except (ImportError, AttributeError) as error:
        raise OptionError("model", f"{model} ({error})", ALLOWED) from error
    finally:
        sys.path.remove(str(Path.cwd()))
