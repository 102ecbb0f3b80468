"""Models that a later process starts without tracing them again.

Dynamo's tracing is most of what a second process does (7 of 8 s for 28 blocks). Torch can keep
Dynamo's result between processes: `TORCH_CACHING_PRECOMPILE=1`, and one call of
`torch.compiler.save_cache_artifacts()` after the first call of the model. It is kept in Inductor's
cache directory. What belongs to it on our side is the outline; bodies come from Inductor's own
caches.

Torch calls this experimental. In 2.13 it drops guards on the identity of objects, and a model that
has to be traced again after it was read, for another shape say, may fail in Dynamo ("already exists
in scope"): it is for servers with one model of fixed shapes.
"""

from __future__ import annotations

import pickle
import sys
import types
from dataclasses import dataclass, replace
from importlib.metadata import version
from typing import Any, final

import torch
from torch._dynamo.precompile_context import BackendCacheArtifact, PrecompileContext
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx._graph_pickler import GraphPickler
from torch.fx._graph_pickler import Options as PickleOptions

from deltapass.assembly import assemble
from deltapass.compiler.lowering import load_lowering
from deltapass.compiler.outline import Outline
from deltapass.errors import NotPrecompiledError
from deltapass.options import Options, parse_options
from deltapass.selector.selector import Selector

BACKEND = "deltadit"


def keep(key: str, outlined: Outline) -> None:
    """Let torch keep an outline with the trace it belongs to; one that cannot be kept is not.

    Args:
        key: Dynamo's name of the compiled graph.
        outlined: The outline.
    """
    without_metadata = PickleOptions(ops_filter=None, node_metadata_key_filter=lambda _: False)
    try:
        content = GraphPickler.dumps((version("deltapass"), *_apart(outlined)), without_metadata)
    except (pickle.PicklingError, TypeError, AttributeError, AssertionError):
        return  # an operator or a literal of the user's own; Dynamo traces it again
    PrecompileContext.record_artifact(KeptOutline(key=key, content=content))


def _apart(outlined: Outline) -> tuple[Outline, torch.nn.Module]:
    """The outline without the captured graph, and that as a module: bare graphs are not pickled."""
    nothing: Any = None
    captured = replace(outlined.captured, graph=nothing, root=nothing)
    return replace(outlined, captured=captured), outlined.captured.module


@final
@dataclass
class KeptOutline(BackendCacheArtifact[Selector]):
    """An outline as bytes. Torch makes a selector of it where it finds the trace again.

    An outline knows no options: those of the torch.compile that finds it count.
    """

    def after_deserialization(self) -> Selector:
        """The selector, with bodies lowered in this process.

        Raises:
            NotPrecompiledError: If the torch.compile under way is not one of ours.
            ScheduleError: If the schedule does not fit the model.
            LoweringError: If a body cannot be lowered.
        """
        options = _options_now()
        lowering = load_lowering(options.lowering, options.mode)
        with torch.no_grad():
            return assemble(self._outline(), options, lowering)

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Refuse what cannot be used while it is read: then torch compiles as if it were not there.

        Raises:
            NotPrecompiledError: If it is damaged, or of another version, or the torch.compile
                under way is not one of ours.
        """
        self.__dict__.update(state)
        _options_now()
        self._outline()

    def __deepcopy__(self, _: object) -> KeptOutline:
        """Itself, for nobody changes it. Torch copies what it keeps."""
        return self

    def _outline(self) -> Outline:
        try:
            kept: Any = GraphPickler.loads(self.content, FakeTensorMode())
            made_by, outlined, module = kept
        except Exception as error:
            raise NotPrecompiledError(f"it cannot be read ({error})") from error
        if made_by != version("deltapass") or not isinstance(outlined, Outline):
            raise NotPrecompiledError(f"it was kept by deltapass {made_by}")
        for body in outlined.bodies:
            body.module.recompile()  # a graph is read without the code that runs it
        captured = replace(outlined.captured, graph=module.graph, root=module)
        return replace(outlined, captured=captured)


def _options_now() -> Options:
    """The options of the torch.compile under way.

    Torch looks a kept trace up by the model's code alone, whatever the backend, and hands the
    options to nobody. They are in the frame of the torch.compile that asks for it.
    """
    frame: types.FrameType | None = sys._getframe(1)
    while frame is not None:
        asking: Any = frame.f_locals.get("self")
        if hasattr(asking, "_package") and hasattr(asking, "callback"):
            return _options_of(asking.callback)
        frame = frame.f_back
    raise NotPrecompiledError("no torch.compile asks for it")


def _options_of(callback: Any) -> Options:
    """The options of the backend under Dynamo's wrappers."""
    while hasattr(callback, "_torchdynamo_orig_backend"):
        callback = callback._torchdynamo_orig_backend
    if getattr(callback, "compiler_name", None) != BACKEND:
        raise NotPrecompiledError("it was compiled by another backend than the one asked for")
    given = callback.kwargs
    return parse_options(given.get("options"), given.get("mode"))
