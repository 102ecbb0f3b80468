"""One helper: expect an error of ours, whether raised directly or wrapped by torch.compile."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Generic, TypeVar

import pytest
from torch._dynamo.exc import BackendCompilerFailed

ErrorT = TypeVar("ErrorT", bound=BaseException)


class Caught(Generic[ErrorT]):
    """Holds the caught error after the block: ours, without torch's wrapper."""

    value: ErrorT


@contextmanager
def raises_in_compile(
    error_class: type[ErrorT], match: str | None = None
) -> Iterator[Caught[ErrorT]]:
    """Expect `error_class`, itself or as the inner exception of BackendCompilerFailed.

    Example:
        with raises_in_compile(NoBlocksError, match="0 operations") as caught:
            torch.compile(model, backend="deltadit", options={"strict": True})(x)
        assert caught.value.remedy
    """
    caught: Caught[ErrorT] = Caught()
    try:
        yield caught
    except BackendCompilerFailed as wrapper:
        error: BaseException = wrapper.inner_exception
        if not isinstance(error, error_class):
            raise
    except error_class as raised:
        error = raised
    else:
        pytest.fail(f"{error_class.__name__} was not raised")
    if match is not None and not re.search(match, str(error)):
        pytest.fail(f"{error_class.__name__} says {str(error)!r}, which does not match {match!r}")
    caught.value = error
