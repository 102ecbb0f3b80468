"""compiler/varying.py: a body whose sizes vary is lowered once for all of them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
import torch
from deltapass.backends.eager import EagerLowering
from driving import compiled, in_session, oracle, tensors
from models import B, D, T, make, noise
from torch._dynamo.utils import counters

from deltapass.compiler.varying import with_sizes
from deltapass.graph.program import Body, operations_of
from deltapass.graph.sizes import Size

STEPS = 4


class AtAnySize:
    """Notes what is lowered for any size, and holds for sizes up to a bound."""

    def __init__(self, most: int = 1000) -> None:
        self.lowered: list[tuple[str, dict[str, int]]] = []
        self.most = most

    def lower(self, body: Body, sizes: Mapping[str, int]) -> Any:
        self.lowered.append((body.name, dict(sizes)))
        least = self.most if min(sizes.values()) > self.most else 0
        return _Run(with_sizes(body, tuple(sizes)), least, 1000 if least else self.most)


class _Run:
    def __init__(self, module: torch.fx.GraphModule, least: int, most: int) -> None:
        self.module, self.least, self.most = module, least, most

    def holds(self, sizes: Mapping[str, int]) -> bool:
        return all(self.least <= size <= self.most for size in sizes.values())

    def __call__(self, *arguments: Any) -> Any:
        return self.module.forward(*arguments)


def lowering_at_any_size(patch: pytest.MonkeyPatch, most: int = 1000) -> AtAnySize:
    noted = AtAnySize(most)
    lower = lambda _, body, sizes: noted.lower(body, sizes)  # noqa: E731
    patch.setattr(EagerLowering, "lower_varying", lower, raising=False)
    return noted


def calls_of(length: int) -> list[Any]:
    text = noise(1_000, B, length, D)
    return [
        ((noise(step, B, T, 4), torch.full((B,), 999.0 - step)), {"encoder_hidden_states": text})
        for step in range(STEPS)
    ]


@pytest.mark.parametrize("name", ["cross_attention", "two_stream"])
def test_prompts_of_other_lengths_compile_nothing_more(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    noted = lowering_at_any_size(monkeypatch)
    toy = make(name, depth=4)
    model = compiled(toy, cached_blocks=2)
    counters.clear()
    lowered = []
    for length in (5, 7, 11, 6):
        calls = calls_of(length)
        if name == "cross_attention":
            calls = [((noise(s, B, 4, 8, 8), a[1]), k) for s, (a, k) in enumerate(calls)]
        outputs, report = in_session(model, calls)
        table = tuple(entry.realised for entry in report.entries)
        assert report.cached == 2
        assert all(map(torch.equal, tensors(outputs), tensors(oracle(toy, table, calls))))
        lowered.append(len(noted.lowered))
    assert counters["stats"]["unique_graphs"] == 2
    first, *rest = lowered
    assert first == 0  # of a fixed size
    assert rest[0] > 0
    assert rest == [rest[0]] * 3
    assert all(sizes for _, sizes in noted.lowered)


def test_sizes_for_which_a_body_does_not_hold_are_lowered_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    noted = lowering_at_any_size(monkeypatch, most=9)
    toy = make("two_stream", depth=4)
    model = compiled(toy, cached_blocks=2)
    for length in (5, 7, 11, 6, 12):
        calls = calls_of(length)
        outputs, report = in_session(model, calls)
        table = tuple(entry.realised for entry in report.entries)
        assert all(map(torch.equal, tensors(outputs), tensors(oracle(toy, table, calls))))
    blocks = [sizes for name, sizes in noted.lowered if name == "block_0"]
    assert [next(iter(sizes.values())) for sizes in blocks] == [7, 11]


def test_body_takes_its_sizes_as_arguments(monkeypatch: pytest.MonkeyPatch) -> None:
    bodies: list[Body] = []

    def lower(_: Any, body: Body, sizes: Mapping[str, int]) -> None:
        bodies.append(body)

    monkeypatch.setattr(EagerLowering, "lower_varying", lower, raising=False)
    model = compiled(make("two_stream", depth=4), cached_blocks=2)
    for length in (5, 7):
        in_session(model, calls_of(length))
    body = next(body for body in bodies if body.name == "block_0")
    assert any(varying is not None for varying in body.varying)
    (symbol,) = {d for v in body.varying if v for dims in v for d in dims if str(d).isidentifier()}
    module = with_sizes(body, (symbol,))
    left = [
        value
        for node in module.graph.nodes
        for value in torch.utils._pytree.tree_leaves((node.args, node.kwargs))
        if isinstance(value, Size)
    ]
    assert not left
    assert operations_of(module.graph) >= body.operations


def test_symbols_that_do_not_compile_leave_bodies_of_fixed_sizes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fails(*_: Any) -> None:
        raise RuntimeError("no such kernel")

    monkeypatch.setattr(EagerLowering, "lower_varying", fails, raising=False)
    toy = make("two_stream", depth=4)
    model = compiled(toy, cached_blocks=2)
    for length in (5, 7):
        outputs, report = in_session(model, calls_of(length))
        table = tuple(entry.realised for entry in report.entries)
        right = tensors(oracle(toy, table, calls_of(length)))
        assert all(map(torch.equal, tensors(outputs), right))
