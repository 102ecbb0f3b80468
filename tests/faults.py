"""Faults inside compiled code: a trap that every body of the eager lowering passes."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from deltapass.backends.eager import EagerLowering

from deltapass.graph.program import Body


@dataclass
class Trap:
    """Raises an error once: when the n-th body of some name is run from when it was set.

    Bodies named in `refused` cannot be lowered, once each.
    """

    error: BaseException | None = None
    body: str = ""
    left: int = 0
    refused: list[str] = field(default_factory=list)

    def set(self, error: BaseException, *, after: int = 0, body: str = "") -> None:
        """Let `after` bodies whose names begin so pass (all names do by default), then fail."""
        self.error, self.left, self.body = error, after, body

    def lower(self, body: Body) -> Callable[..., Any]:
        """In place of the eager lowering's own."""
        if body.name in self.refused:
            self.refused.remove(body.name)
            raise ValueError("no such operator")

        def run(*args: Any) -> Any:
            if self.error is not None and body.name.startswith(self.body):
                self.left -= 1
                if self.left < 0:
                    error, self.error = self.error, None
                    raise error
            return body.module.forward(*args)

        return run


@contextmanager
def trapped() -> Iterator[Trap]:
    """What is compiled inside has the trap in it, and is forgotten afterwards."""
    trap = Trap()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(EagerLowering, "lower", lambda _, body: trap.lower(body))
        torch._dynamo.reset()
        yield trap
        torch._dynamo.reset()


def fails(run: Callable[[], Any], error: type[BaseException]) -> None:
    """Expect an error, and keep nothing of it: its frames would hold tensors."""
    try:
        run()
    except error as raised:
        assert type(raised) is error
    else:
        pytest.fail(f"{error.__name__} was not raised")


def held() -> int:
    """Bytes (not KiB) of all live tensors, except those that `gc.freeze` has put aside."""
    gc.collect()
    kinds = (torch.Tensor, torch.nn.Parameter)
    return sum(found.nbytes for found in gc.get_objects() if type(found) in kinds)
