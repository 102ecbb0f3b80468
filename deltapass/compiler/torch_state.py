"""What torch keeps for a whole thread, put back when an analysis is left in any way.

A graph may change it on its way: it enters autocast, a level of vmap, another gradient mode, and
leaves it some operations later. An error in between would leave it changed for the whole process.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import fx, overrides
from torch.autograd import forward_ad
from torch.utils import _python_dispatch as dispatch

Setting = tuple[Any, Any]  # how to set it, and to what


@contextmanager
def kept_state() -> Iterator[None]:
    """Leave torch as it was found: its modes, levels of transforms and settings of this thread."""
    settings = tuple(_settings())
    levels = torch._C._functorch.get_dynamic_layer_stack_depth()
    dual, autocasts = forward_ad._current_level, _autocasts()
    modes, functions = _modes(), _function_modes()
    with torch._C._PreserveDispatchKeyGuard():
        try:
            yield
        finally:
            while _modes() > modes:
                dispatch._pop_mode()
            while _function_modes() > functions:
                overrides._pop_mode()  # type: ignore[no-untyped-call]
            torch._C._functorch.pop_dynamic_layer_stack_and_undo_to_depth(levels)
            while forward_ad._current_level > dual:
                forward_ad.exit_dual_level()  # type: ignore[no-untyped-call]
            while _autocasts() > autocasts:
                torch.autocast_decrement_nesting()
            for put, value in settings:
                put(value)


class Leaving(fx.Interpreter):
    """Runs a graph; where that fails, leaves what the graph entered and had not left."""

    def __init__(self, module: fx.GraphModule) -> None:
        super().__init__(module, garbage_collect_values=False)
        self._entered: dict[fx.Node, Any] = {}

    def run(self, *args: Any, **kwargs: Any) -> Any:
        """Run the graph, with torch left as it was found if there is an error."""
        with kept_state():
            try:
                return super().run(*args, **kwargs)
            finally:
                while self._entered:
                    self._entered.popitem()[1].__exit__(None, None, None)

    def run_node(self, n: fx.Node) -> Any:
        """Run one node."""
        value = super().run_node(n)
        if not torch.is_tensor(value) and hasattr(type(value), "__exit__"):
            self._entered[n] = value
        elif getattr(n.target, "__name__", "").startswith("_exit"):
            for left in n.all_input_nodes:
                self._entered.pop(left, None)
        return value


def autocast_types() -> tuple[tuple[str, torch.dtype], ...]:
    """The types in which autocast computes here, by kind of device; none where it is off.

    Graphs that were traced under it do not say so: their operators read it when they run.
    """
    on = (device for device in ("cpu", "cuda") if torch.is_autocast_enabled(device))
    return tuple((device, torch.get_autocast_dtype(device)) for device in on)


def stop_autocast() -> None:
    """Switch autocast off, for whoever keeps the state (`kept_state`)."""
    for device, _ in autocast_types():
        torch.set_autocast_enabled(device, False)


@contextmanager
def outside_autocast() -> Iterator[None]:
    """Without the autocast that is on here, if any is."""
    on = autocast_types()
    stop_autocast()
    try:
        yield
    finally:
        for device, _ in on:
            torch.set_autocast_enabled(device, True)


def _modes() -> int:
    return len(dispatch._get_current_dispatch_mode_stack())


def _function_modes() -> int:
    return len(overrides._get_current_function_mode_stack())  # type: ignore[no-untyped-call]


def _autocasts() -> int:
    """How many autocasts are open round here."""
    torch.autocast_increment_nesting()
    return torch.autocast_decrement_nesting()


def _settings() -> Iterator[Setting]:
    yield torch._C._set_grad_enabled, torch.is_grad_enabled()
    yield torch._C._set_fwd_grad_enabled, torch._C._is_fwd_grad_enabled()
    yield torch.set_autocast_cache_enabled, torch.is_autocast_cache_enabled()
    for device in ("cpu", "cuda"):
        enabled, dtype = torch.is_autocast_enabled(device), torch.get_autocast_dtype(device)
        yield lambda on, device=device: torch.set_autocast_enabled(device, on), enabled
        yield lambda to, device=device: torch.set_autocast_dtype(device, to), dtype
    for kernel in ("flash", "mem_efficient", "math", "cudnn"):
        enabled = getattr(torch.backends.cuda, f"{kernel}_sdp_enabled")()
        yield getattr(torch.backends.cuda, f"enable_{kernel}_sdp"), enabled
    if hasattr(torch._C, "_get_sdp_priority_order"):
        yield torch._C._set_sdp_priority_order, torch._C._get_sdp_priority_order()
    yield torch.set_default_dtype, torch.get_default_dtype()
