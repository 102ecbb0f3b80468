"""The first call that a pipeline makes of its denoiser: nobody knows better what it is given."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, final

import torch

from deltapass.errors import DeltapassError, ModelSourceError, PipelineCallError
from deltapass.pipelines.attach import denoisers

Call = tuple[Any, tuple[Any, ...], dict[str, Any]]  # a denoiser, and one call of it


def first_call(pipeline: Any, call: Mapping[str, Any]) -> Call:
    """The denoiser of a pipeline, with the inputs of its first call.

    Raises:
        ModelSourceError: If the pipeline has no denoiser.
        PipelineCallError: If it refuses the call, or never calls its denoiser.
    """
    found = denoisers(pipeline)
    if not found:
        raise ModelSourceError(type(pipeline).__name__, "it has no denoiser")
    denoiser = next(iter(found.values())).eval().requires_grad_(False)
    caught: list[tuple[tuple[Any, ...], dict[str, Any]]] = []

    def catch(_: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        caught.append((args, kwargs))
        raise _CaughtError

    handle = denoiser.register_forward_pre_hook(catch, with_kwargs=True)
    try:
        with torch.no_grad(), refused_calls(pipeline, call):
            pipeline(**call)
    except _CaughtError:
        pass
    finally:
        handle.remove()
    if not caught:
        problem = "it never calls its denoiser"
        raise PipelineCallError(type(pipeline).__name__, sorted(call), problem)
    return denoiser, *caught[0]


@contextmanager
def refused_calls(pipeline: Any, call: Mapping[str, Any]) -> Iterator[None]:
    """Around a call of a pipeline: whatever it raises is about the call, and its words are kept.

    Raises:
        PipelineCallError: If the pipeline raises anything that is not ours.
    """
    try:
        yield
    except (DeltapassError, _CaughtError):
        raise
    except Exception as error:
        name = type(pipeline).__name__
        raise PipelineCallError(name, sorted(call), f"it says {said(error)}") from error


def said(error: Exception) -> str:
    """An error of another library, whose text alone may be a bare index."""
    return f"{type(error).__name__}: {error}".rstrip(".: ")


@final
class _CaughtError(Exception):
    """Stops a pipeline at the first call of its denoiser."""
