"""compiler/torch_state.py: whatever fails in an analysis, torch is left as it was."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import fx, nn
from torch.autograd import forward_ad
from torch.nn.attention import SDPBackend, _sdpa_kernel
from torch.overrides import BaseTorchFunctionMode
from torch.utils import _python_dispatch as dispatch

from deltapass.compiler.capture import capture
from deltapass.compiler.torch_state import kept_state

Enter = Callable[[], Any]


def state() -> tuple[object, ...]:
    """All that an operator may go by besides its arguments."""
    devices = [(torch.is_autocast_enabled(d), torch.get_autocast_dtype(d)) for d in ("cpu", "cuda")]
    kernels = (torch.backends.cuda.flash_sdp_enabled(), torch.backends.cuda.math_sdp_enabled())
    return (
        torch.is_grad_enabled(),
        torch.is_inference_mode_enabled(),
        *devices,
        torch.is_autocast_cache_enabled(),
        (torch.autocast_increment_nesting(), torch.autocast_decrement_nesting()),
        torch._C._functorch.get_dynamic_layer_stack_depth(),
        forward_ad._current_level,
        *kernels,
        len(dispatch._get_current_dispatch_mode_stack()),
        len(torch.overrides._get_current_function_mode_stack()),
        torch.get_default_dtype(),
    )


class Passing(dispatch.TorchDispatchMode):
    """A mode that changes nothing."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return func(*args, **(kwargs or {}))


ENTERED: dict[str, tuple[Callable[..., Any], tuple[Any, ...]]] = {
    "vmap": (torch._C._functorch._vmap_increment_nesting, (2, "error")),
    "grad": (torch._C._functorch._grad_increment_nesting, ()),
    "jvp": (torch._C._functorch._jvp_increment_nesting, ()),
    "autocast": (torch.amp.autocast_mode._enter_autocast, ("cpu", torch.bfloat16, True, False)),
    "inference": (torch.autograd.grad_mode._enter_inference_mode, (True,)),
    "enable_grad": (torch._C._set_grad_enabled, (True,)),
    "dual": (forward_ad.enter_dual_level, ()),
    "kernels": (lambda: _sdpa_kernel([SDPBackend.MATH]), ()),
    "dtype": (torch.set_default_dtype, (torch.float64,)),
    "dispatch": (lambda: Passing().__enter__() and None, ()),
    "function": (lambda: BaseTorchFunctionMode().__enter__() and None, ()),
}


def fails(x: torch.Tensor) -> torch.Tensor:
    raise LookupError("of a stranger's operator")


@pytest.mark.parametrize("kind", ENTERED)
def test_error_inside_leaves_nothing_entered(kind: str) -> None:
    graph = fx.Graph()
    x = graph.placeholder("x")
    graph.call_function(*ENTERED[kind])
    graph.output(graph.call_function(fails, (x,)))
    before = state()
    with pytest.raises(LookupError):
        capture(fx.GraphModule(nn.Module(), graph), [torch.ones(2)])
    assert state() == before
    assert torch.randn(2).shape == (2,)


# An inference mode is an object, which its own exit puts back: `Leaving` sees to that.
@pytest.mark.parametrize("kind", sorted(ENTERED.keys() - {"inference"}))
def test_state_is_put_back_whether_or_not_there_is_an_error(kind: str) -> None:
    before = state()
    enter, arguments = ENTERED[kind]
    with kept_state():
        entered = enter(*arguments)
    assert state() == before
    del entered
    assert state() == before


def test_user_s_own_modes_stay_entered() -> None:
    with torch.autocast("cpu"), torch.enable_grad(), Passing():
        before = state()
        with pytest.raises(LookupError), kept_state():
            torch._C._functorch._vmap_increment_nesting(2, "error")
            raise LookupError
        assert state() == before
