"""C++ kernels of several bodies compile while Inductor works on the next body.

Inductor hands a body's kernels to its pool of compiler threads and then waits for them. Where
more bodies follow, the wait can come once, after the last: the compiler and Inductor's own Python
work at one time, and the pool is never empty between two bodies.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

from torch._inductor.async_compile import AsyncCompile
from torch._inductor.codecache import LambdaFuture


@contextmanager
def kernels_behind() -> Iterator[None]:
    """Put the wait for C++ kernels off to the end of the block.

    Kernels of devices are waited for as ever, for Inductor looks at those before it goes on; so
    are kernels that other threads compile meanwhile.

    Raises:
        Exception: At the end of the block, whatever the C++ compiler refused.
    """
    wait = getattr(AsyncCompile, "_wait_futures", None)
    if wait is None:  # a torch that waits in another way: it waits after each body
        yield
        return
    here = threading.get_ident()
    later: list[tuple[AsyncCompile, dict[str, Any]]] = []

    def put_off(compiling: AsyncCompile, scope: dict[str, Any]) -> None:
        if threading.get_ident() == here and _only_cpp(scope):
            later.append((compiling, scope))
        else:
            wait(compiling, scope)

    with patch.object(AsyncCompile, "_wait_futures", put_off):
        yield
    for compiling, scope in later:
        wait(compiling, scope)


def _only_cpp(scope: dict[str, Any]) -> bool:
    """Whether all that a generated module waits for are C++ kernels, by the names it gives them."""
    waited = [name for name, value in scope.items() if isinstance(value, LambdaFuture)]
    return all(name.startswith("cpp_") for name in waited)
