"""Optional libraries: imported where they are needed, with an error that names the pip extra."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from deltapass.errors import MissingLibraryError


@contextmanager
def needs(library: str, extra: str) -> Iterator[None]:
    """Put import statements of a library inside it.

    Raises:
        MissingLibraryError: If one of them fails; names the extra.
    """
    try:
        yield
    except ImportError as error:
        raise MissingLibraryError(library, extra) from error


def optional_module(name: str, extra: str) -> Any:
    """Import a module by its dotted name, such as one without type information.

    Raises:
        MissingLibraryError: If its library is not installed; names the extra.
    """
    with needs(name.partition(".")[0], extra):
        return importlib.import_module(name)
