"""Round every test: a fixed seed, a fresh Dynamo, few threads; GPU tests only where one is."""

from __future__ import annotations

import gc
import logging
import sys
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
from deltapass.backends.onnx.operators import gathered_once
from hypothesis import settings
from times import Times

# The first example of a compiled property is slow; the same examples every time keep CI steady.
settings.register_profile("deltapass", deadline=None, derandomize=True)
settings.load_profile("deltapass")

# A second thread gains toy models nothing; on a busy machine its barriers cost a hundredfold.
torch.set_num_threads(1)

# Tracing makes many objects and hardly any garbage, and so does importing all that is tested.
gc.set_threshold(10_000, 20, 20)

# pytest hands a handler to every logger that does not propagate, and where this one has any torch
# writes down every graph and guard that it compiles.
logging.getLogger("torch.__trace").propagate = True


GOLDEN = Path(__file__).parent / "golden"


def pytest_addoption(parser: pytest.Parser) -> None:
    text = "write the golden texts anew instead of comparing with them"
    parser.addoption("--update-golden", action="store_true", help=text)
    parser.addoption("--times", action="store_true", help="end with where the time went")


def pytest_configure(config: pytest.Config) -> None:
    if config.getoption("--times"):
        config.pluginmanager.register(Times())


@pytest.fixture
def golden(request: pytest.FixtureRequest) -> Callable[[str, str], None]:
    """Compare a text with the file golden/NAME.txt, or write it under --update-golden."""

    def compare(name: str, text: str) -> None:
        path = GOLDEN / f"{name}.txt"
        if request.config.getoption("--update-golden"):
            path.write_text(text + "\n")
        assert text + "\n" == path.read_text(), f"{path.name}: see --update-golden"

    return compare


@pytest.fixture(scope="session", autouse=True)
def operators_of_onnx() -> Iterator[None]:
    """Conversions share torch's table of operators, where a collected module may convert."""
    with gathered_once() if "onnxscript" in sys.modules else nullcontext():
        yield


@pytest.fixture(scope="module", autouse=True)
def put_aside() -> None:
    """Let Python's collector pass over what is there already: all of torch, and of what it loads.

    A look at all that takes a second, and Dynamo makes enough objects for many such looks.
    """
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="module", autouse=True)
def kept_compiled(request: pytest.FixtureRequest) -> Iterator[bool]:
    """Whether the module keeps what is compiled from test to test, as servers do."""
    keeps = request.node.get_closest_marker("keeps_compiled") is not None
    torch._dynamo.reset()
    # The limit is of all models of one class together.
    with torch._dynamo.config.patch(recompile_limit=64) if keeps else nullcontext():
        yield keeps
    torch._dynamo.reset()


@pytest.fixture(autouse=True)
def fresh_torch(kept_compiled: bool) -> Iterator[None]:
    """Seed the generator and forget what Dynamo compiled, before and after the test."""
    torch.manual_seed(0)
    if kept_compiled:
        yield
        return
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if torch.cuda.is_available():
        return
    skip = pytest.mark.skip(reason="needs a CUDA device")
    for item in items:
        if "gpu" in item.keywords:
            item.add_marker(skip)
