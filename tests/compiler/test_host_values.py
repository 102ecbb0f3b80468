"""compiler/host_values.py: indices and sizes made of inputs are worked out before the graph."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from driving import compiled, in_session, oracle, tensors
from models import AdaLNDenoiser, D, noise, randomise
from torch import Tensor, nn

import deltapass
from deltapass.compiler.host_values import host_values
from deltapass.compiler.tracing import trace
from deltapass.errors import RefusalWarning, UnsupportedOperatorError

STEPS = 4
WORDS = 6


class Worded(AdaLNDenoiser):
    """A denoiser that reads text (B, WORDS, D) where a mask (B, WORDS) says so."""

    def __init__(self) -> None:
        super().__init__(depth=4)
        self.words = nn.Linear(D, D)

    def read(self, text: Tensor, mask: Tensor) -> Tensor:
        raise NotImplementedError

    def forward(
        self, hidden_states: Tensor, timestep: Tensor, text: Tensor, mask: Tensor
    ) -> Tensor:
        x, conditioning = self.embedding(hidden_states), self.conditioning(timestep)
        conditioning = conditioning + self.words(self.read(text, mask))
        for block in self.blocks:
            x = block(x, conditioning)
        return self.head(x, conditioning)

    def call(self, step: int, words: int = 4) -> tuple[tuple[Any, ...], dict[str, Any]]:
        (x, timestep), _ = self.inputs(999.0 - 100 * step, step)
        mask = torch.arange(WORDS).expand(len(x), -1) < words
        return (x, timestep, noise(7, len(x), WORDS, D), mask), {}


class Indices(Worded):
    def read(self, text: Tensor, mask: Tensor) -> Tensor:
        at = mask.flatten().nonzero().flatten()
        return text.flatten(0, 1)[at].mean(0, keepdim=True)


class Picked(Worded):
    def read(self, text: Tensor, mask: Tensor) -> Tensor:
        return text[mask].mean(0, keepdim=True)


class Places(Worded):
    """Several results of one operator."""

    def read(self, text: Tensor, mask: Tensor) -> Tensor:
        rows, columns = mask.nonzero(as_tuple=True)
        return text[rows, columns].mean(0, keepdim=True)


class Length(Worded):
    def read(self, text: Tensor, mask: Tensor) -> Tensor:
        length = mask.sum(1).max().item()
        torch._check(length > 0)
        torch._check(length <= text.shape[1])
        return text[:, :length].mean(1)


MODELS = (Indices, Picked, Places, Length)


@pytest.mark.parametrize("kind", MODELS)
def test_trajectories_of_several_masks_equal_the_oracle(kind: type[Worded]) -> None:
    model = randomise(kind())
    run = compiled(model, cached_blocks=2)
    for words in (4, 5, 4):
        calls = [model.call(step, words) for step in range(STEPS)]
        outputs, report = in_session(run, calls)
        assert report.cached == 2
        table = tuple(entry.realised for entry in report.entries)
        right = tensors(oracle(model, table, calls))
        assert all(map(torch.equal, tensors(outputs), right))


def test_other_words_of_the_same_number_refresh() -> None:
    model = randomise(Picked())
    run = compiled(model, cached_blocks=2)
    calls = [model.call(step) for step in range(STEPS)]
    last = calls[3][0]
    calls[3] = (*last[:3], last[3].flip(1)), {}
    outputs, report = in_session(run, calls)
    assert report.entries[3].cause is deltapass.Cause.CONDITIONING
    with torch.no_grad():
        assert torch.equal(outputs[3], model(*calls[3][0]))


def test_graph_falls_in_two() -> None:
    model = randomise(Indices())
    args, _ = model.call(0)
    module, inputs = trace(model, args, {})
    split = host_values(module)
    assert split is not None
    assert {str(n.target) for n in split.before.graph.nodes if n.op.startswith("call")} == {
        "flatten",
        "nonzero",
    }
    assert not split.rest.graph.find_nodes(op="call_method", target="nonzero")
    given = split(inputs)
    assert torch.equal(given[-1], args[3].flatten().nonzero())
    with torch.no_grad():
        assert torch.equal(split.rest(*given)[0], model(*args))


def test_graph_of_known_shapes_stays_whole() -> None:
    model = randomise(AdaLNDenoiser(depth=2))
    assert host_values(trace(model, *model.inputs(500.0))[0]) is None


class OfTheTimestep(Worded):
    def forward(
        self, hidden_states: Tensor, timestep: Tensor, text: Tensor, mask: Tensor
    ) -> Tensor:
        late = (timestep < 500.0).nonzero().flatten()
        kept = text[late].sum(0, keepdim=True)
        return super().forward(hidden_states + kept.mean(), timestep, text, mask)

    def read(self, text: Tensor, mask: Tensor) -> Tensor:
        return text.mean(1)


class OfTheWork(Worded):
    def read(self, text: Tensor, mask: Tensor) -> Tensor:
        words = self.words(text)
        return words[words.mean(2) > 0].mean(0, keepdim=True)


@pytest.mark.parametrize(
    ("kind", "what"), [(OfTheTimestep, "depend on timestep"), (OfTheWork, "depend on the weights")]
)
def test_what_is_part_of_the_work_is_refused(kind: type[Worded], what: str) -> None:
    model = randomise(kind())
    args, _ = model.call(0)
    with torch.no_grad(), pytest.warns(RefusalWarning, match=what):
        ours = compiled(model, cached_blocks=2)(*args)
    assert torch.equal(ours, model(*args))
    report = deltapass.explain(model, *args)
    assert report.refusal is not None
    assert what in report.refusal
    with pytest.raises(UnsupportedOperatorError):
        host_values(trace(model, args, {})[0])


def test_explain_follows_them_and_says_where_there_is_no_data() -> None:
    model = randomise(Indices())
    args, _ = model.call(0)
    assert deltapass.explain(model, *args).refusal is None
    nowhere = [value.to("meta") for value in args]
    refusal = deltapass.explain(model.to("meta"), *nowhere).refusal
    assert refusal is not None
    assert "meta tensors lack" in refusal
