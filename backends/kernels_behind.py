"""C++ kernels of several bodies compile while Inductor works on the next body.

Inductor hands a body's kernels to its pool of compiler threads and then waits for them. Where
more bodies follow, the wait can come once, after the last: the compiler and Inductor's own Python
work at one time, and the pool is never empty between two bodies.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from typing import Any, Final, final

from torch._inductor import codecache
from torch._inductor.async_compile import AsyncCompile
from torch._inductor.codecache import LambdaFuture

# What a generated module waits for; a torch without the common class has LambdaFuture alone.
FUTURES: Final = (Future, LambdaFuture, getattr(codecache, "CodeCacheFuture", LambdaFuture))
PATCHED: Final[Any] = AsyncCompile  # to mypy a class whose method may be replaced

Wait = Callable[[AsyncCompile, dict[str, Any]], None]
Later = list[tuple[AsyncCompile, dict[str, Any]]]


@contextmanager
def kernels_behind() -> Iterator[None]:
    """Put the wait for C++ kernels off to the end of the block.

    Kernels of devices are waited for as ever, for Inductor looks at those before it goes on; so
    are kernels that other threads compile meanwhile. All are waited for, whatever fails.

    Raises:
        Exception: At the end of the block, the first that the C++ compiler refused.
    """
    if not hasattr(AsyncCompile, "_wait_futures"):
        yield  # a torch that waits in another way: it waits after each body
        return
    with _HOOK.installed() as wait:
        later: Later = []
        try:
            with _HOOK.collecting(later):
                yield
        except BaseException:
            with suppress(Exception):  # the block's own error is the first
                _wait_for_all(wait, later)
            raise
        _wait_for_all(wait, later)


@final
class _Hook:
    """Stands in for torch's wait from the first use to the end of the last, in all threads.

    Each use putting back what it found would leave a dead hook where two threads overlap.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._uses = 0
        self._wait: Any = None
        self._here = threading.local()

    @contextmanager
    def installed(self) -> Iterator[Wait]:
        """Have the hook in place; gives torch's own wait."""
        with self._lock:
            if not self._uses:
                self._wait = PATCHED._wait_futures
                PATCHED._wait_futures = self._instead_of(self._wait)
            self._uses += 1
            wait = self._wait
        try:
            yield wait
        finally:
            with self._lock:
                self._uses -= 1
                if not self._uses:
                    PATCHED._wait_futures = self._wait

    @contextmanager
    def collecting(self, later: Later) -> Iterator[None]:
        """Let this thread's waits be put off into a list."""
        before = getattr(self._here, "later", None)
        self._here.later = later
        try:
            yield
        finally:
            self._here.later = before

    def _instead_of(self, wait: Wait) -> Wait:
        def put_off(compiling: AsyncCompile, scope: dict[str, Any]) -> None:
            later: Later | None = getattr(self._here, "later", None)
            if later is not None and _only_cpp(scope):
                later.append((compiling, scope))
            else:
                wait(compiling, scope)

        return put_off


_HOOK: Final = _Hook()


def _wait_for_all(wait: Wait, later: Later) -> None:
    errors: list[Exception] = []
    for compiling, scope in later:
        try:
            wait(compiling, scope)
        except Exception as error:  # noqa: BLE001  # raised below, after the others are done
            errors.append(error)
    if errors:
        raise errors[0]


def _only_cpp(scope: dict[str, Any]) -> bool:
    """Whether a generated module waits for C++ kernels alone, by the names it gives them."""
    waited = {name: value for name, value in scope.items() if isinstance(value, FUTURES)}
    cpp = (
        isinstance(value, LambdaFuture) and name.startswith("cpp_")
        for name, value in waited.items()
    )
    return bool(waited) and all(cpp)
