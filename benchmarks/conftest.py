"""What the benchmarks under pytest-benchmark share: options, counts and a fresh torch."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import Any

import counted
import pytest
import torch
from denoisers import DENOISERS, Denoiser
from measure import DEVICE


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("deltapass")
    group.addoption("--model", default="dit-tiny", choices=list(DENOISERS), help="whose steps")
    group.addoption("--device", default=DEVICE, help="where its steps run")
    group.addoption("--dtype", default="float32", help="of weights and inputs: bfloat16")


@pytest.fixture(scope="module")
def denoiser(request: pytest.FixtureRequest) -> Denoiser:
    """The model of `--model`, on `--device`, in `--dtype`."""
    option = request.config.getoption
    return DENOISERS[option("--model")](option("--device"), getattr(torch, option("--dtype")))


@pytest.fixture(scope="module", autouse=True)
def fresh_torch() -> Iterator[None]:
    """Nothing is compiled before a module or left by it; no gradients."""
    torch.compiler.reset()
    with torch.no_grad():
        yield
    torch.compiler.reset()


@pytest.fixture(scope="session")
def counts_of() -> Callable[[str], counted.Counts]:
    """Counts of a subject, once for all benchmarks."""
    return functools.cache(lambda subject: counted.SUBJECTS[subject]())


@pytest.fixture
def gate(benchmark: Any, counts_of: Callable[[str], counted.Counts]) -> Callable[[str], None]:
    """Puts the counts of a subject beside the times; fails where they are not as expected."""

    def put(subject: str) -> None:
        found = counts_of(subject)
        benchmark.extra_info.update({f"{subject}: {name}": n for name, n in found.items()})
        counted.check(subject, found)

    return put
