"""Which graphs are only a part of the model: pieces of a broken one, and blocks compiled alone.

Dynamo tells a backend little of what it compiles, but its frames are on Python's stack, and the
user's round them:

    sample          calls the model
    compiled call   Dynamo was asked to compile what is called here
    forward         runs uncompiled, because the graph broke in a loop; as a rule there is none
    Dynamo          compiles one function

So what runs between the compiled call and Dynamo was given up, and the function is a piece of it.
What runs outside the compiled call, and holds several modules like this one, is the model of which
it is a block. Where the model has hooks, as offloading puts on it, these are what broke the graph.
"""

from __future__ import annotations

import inspect
import re
import sys
import types
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, final

import torch
from torch import fx, nn
from torch._dynamo.utils import get_compilation_metrics

from deltapass.errors import BlockAloneError, GraphBreakError, HooksInsideError

RESUMED: Final = "torch_dynamo_resume_in_"
TORCH: Final = str(Path(torch.__file__).parent)
HOOKS: Final = ("_hf_hook", "_diffusers_hook")  # where libraries note them on a module
ALIKE: Final = 3  # modules of one class; two may be a pair of denoisers that take turns


def refuse_fragment(module: fx.GraphModule) -> None:
    """Refuse a graph that is only a part of the model.

    Raises:
        HooksInsideError: If Dynamo broke the model's graph, and hooks are on what it compiles.
        GraphBreakError: If it broke the graph before or after this piece for another reason.
        BlockAloneError: If it is one of several modules alike of a model that runs uncompiled.
    """
    site = _compile_site()
    try:
        _refuse_piece(module, site)
    except GraphBreakError as error:
        refuse_hooks((*site.modules, *_modules(site.skipped)), error)
        raise
    _refuse_block(site)


def refuse_hooks(modules: Iterable[nn.Module], broken: Exception) -> None:
    """Name the hooks on one of these modules, if it has any, as what broke the graph.

    Raises:
        HooksInsideError: From what is known of the break.
    """
    model = max(modules, key=_hooked, default=None)
    if model is not None and (hooked := _hooked(model)):
        raise HooksInsideError(type(model).__name__, hooked) from broken


def _hooked(model: nn.Module) -> int:
    """How many modules have a hook in the place of their forward."""
    # Put on what torch.compile gives, a hook is noted on the model too, but goes round the graph.
    replaced = (each for each in model.modules() if "forward" in vars(each))
    return sum(any(hasattr(each, name) for name in HOOKS) for each in replaced)


def _refuse_piece(module: fx.GraphModule, site: _Site) -> None:
    reason: Any = getattr(module, "compile_subgraph_reason", None)
    if reason is not None and reason.graph_break:
        places = [f"{frame.filename}:{frame.lineno}" for frame in reason.user_stack[-1:]]
        raise GraphBreakError(_first_line(reason.reason), *places)
    if site.name.startswith(RESUMED):
        function, line = site.name.removeprefix(RESUMED).rsplit("_at_", 1)
        raise GraphBreakError(f"this one resumes {function}", f"{site.file}:{line}")
    skipped = next(iter(site.skipped), None)
    within = next(_modules(site.skipped), None)
    # A whole model that an uncompiled function calls in a loop is no piece.
    if skipped is not None and (site.module is None or within is not None):
        raise _break_in(skipped)


@final
@dataclass(frozen=True)
class _Site:
    """What Dynamo compiles now: a function and the module it is a method of.

    Attributes:
        modules: All modules among its variables.
        skipped: The user's frames within the compiled call, innermost first.
        outside: Those that the compiled call is made from.
    """

    name: str = ""
    file: str = ""
    module: nn.Module | None = None
    modules: tuple[nn.Module, ...] = ()
    skipped: tuple[types.FrameType, ...] = ()
    outside: tuple[types.FrameType, ...] = ()


def _compile_site() -> _Site:
    frames = list(_frames())
    compiling = [at for at, frame in enumerate(frames) if _is_dynamo(frame, "convert_frame.py")]
    if not compiling:
        return _Site()
    # One compilation: those of an outer one lie beyond its compiled call.
    calls = (at for at, frame in enumerate(frames) if _is_dynamo(frame, "eval_frame.py"))
    call = next((at for at in calls if at > compiling[0]), len(frames))
    own = [at for at in compiling if at < call]
    known = [frames[at].f_locals for at in own]
    code = next((each["code"] for each in known if _is_code(each.get("code"))), None)
    values: Mapping[str, Any] = next(
        (each["locals"] for each in known if isinstance(each.get("locals"), dict)), {}
    )
    if code is None:
        return _Site()
    return _Site(
        name=code.co_name,
        file=code.co_filename,
        module=_first_module(code, values),
        modules=tuple(each for each in values.values() if isinstance(each, nn.Module)),
        skipped=tuple(filter(_is_users, frames[own[-1] + 1 : call])),
        outside=tuple(filter(_is_users, frames[call:])),
    )


def _frames() -> Iterator[types.FrameType]:
    frame: types.FrameType | None = sys._getframe(1)
    while frame is not None:
        yield frame
        frame = frame.f_back


def _is_code(value: Any) -> bool:
    return isinstance(value, types.CodeType)


def _is_users(frame: types.FrameType) -> bool:
    return not frame.f_code.co_filename.startswith(TORCH)


def _is_dynamo(frame: types.FrameType, file: str) -> bool:
    return frame.f_code.co_filename == str(Path(TORCH, "_dynamo", file))


def _modules(frames: Iterable[types.FrameType]) -> Iterator[nn.Module]:
    """The modules whose methods frames run."""
    return (module for module in map(_running, frames) if module is not None)


def _running(frame: types.FrameType) -> nn.Module | None:
    """The module whose method a frame runs; nothing else of a user's frame is held on to."""
    code = frame.f_code
    if not code.co_argcount:
        return None
    values = frame.f_locals
    module = _first_module(code, values)
    # Until Python 3.13 this is a copy that the frame keeps, with all that the user may delete.
    if isinstance(values, dict) and code.co_flags & inspect.CO_NEWLOCALS:
        values.clear()
    return module


def _first_module(code: types.CodeType, values: Mapping[str, Any]) -> nn.Module | None:
    own = values.get(code.co_varnames[0]) if code.co_argcount else None
    return own if isinstance(own, nn.Module) else None


def _break_in(frame: types.FrameType) -> GraphBreakError:
    """The break for which Dynamo gave up a function, from its own records of what failed."""
    code = frame.f_code
    for record in reversed(get_compilation_metrics()):
        same = (record.co_name, record.co_firstlineno) == (code.co_name, code.co_firstlineno)
        if same and record.fail_reason:
            line = record.fail_user_frame_lineno or frame.f_lineno
            file = record.fail_user_frame_filename or code.co_filename
            return GraphBreakError(_first_line(record.fail_reason), f"{file}:{line}")
    return GraphBreakError(
        f"{code.co_name} is not compiled", f"{code.co_filename}:{frame.f_lineno}"
    )


def _refuse_block(site: _Site) -> None:
    if site.module is None:
        return
    for model in _modules(site.outside):
        names = [name for name, each in model.named_modules() if each is site.module]
        alike = sum(type(each) is type(site.module) for each in model.modules())
        numbered = any(re.search(r"\d", name) for name in names)
        if names and (alike >= ALIKE or (alike > 1 and numbered)):
            name = names[0].removesuffix("._orig_mod")
            raise BlockAloneError(name, type(site.module).__name__, type(model).__name__, alike)


def _first_line(text: object) -> str:
    return str(text).strip().split("\n")[0].strip().rstrip(".")
