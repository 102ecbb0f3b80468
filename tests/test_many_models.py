"""Many models of diffusers, tiny: cached right, or refused; by an oracle that knows no streams.

Rows of benchmarks/models/many.toml, whose `found` says what becomes of a model: the number of its
blocks, "refused" (it runs in full, with a reason), or "broken" (plain torch.compile does not
capture it as one graph either, so nothing is asked of it).
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

import pytest
import torch

pytest.importorskip("diffusers")

from block_oracle import BlockOracle
from many_case import ROWS, call_of, many_model
from torch import fx, nn

import deltapass
from deltapass.backend import analyse, deltadit
from deltapass.compiler.outline import Outline
from deltapass.errors import UnsupportedGraphError

STEPS = 4
OPTIONS = {"lowering": "eager", "boundary": 0.5, "interval": 2}

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]


def is_captured(model: nn.Module, call: dict[str, Any]) -> bool:
    """Whether plain torch.compile makes one graph of it."""
    torch._dynamo.reset()
    try:
        with torch.no_grad():
            torch.compile(model, backend="eager", fullgraph=True)(**call)
    except Exception:  # noqa: BLE001 whatever it is, it is not ours
        return False
    finally:
        torch._C._functorch.pop_dynamic_layer_stack_and_undo_to_depth(0)
        torch._dynamo.reset()
    return True


def blocks_of(model: nn.Module, outlined: Outline) -> list[nn.Module]:
    named = list(model.named_modules())
    return [
        next(module for name, module in named if f".{name}".endswith(f".{block.name}"))
        for block in outlined.stack.blocks
    ]


@pytest.mark.parametrize("name", ROWS)
def test_cached_steps_equal_the_oracle_or_the_model_is_refused(name: str) -> None:
    model = many_model(name)
    calls = [call_of(model, ROWS[name]["inputs"], seed) for seed in range(STEPS)]
    found = what_becomes_of(model, calls)
    assert str(found) == str(ROWS[name]["found"])


def what_becomes_of(model: nn.Module, calls: Sequence[dict[str, Any]]) -> str:
    outlines: list[Outline] = []

    def backend(gm: fx.GraphModule, given: Sequence[Any]) -> Callable[..., Any]:
        with suppress(UnsupportedGraphError):  # the backend says so too
            outlines.append(analyse(gm, given))
        return deltadit(gm, given, options=OPTIONS)

    torch._dynamo.reset()
    compiled = torch.compile(model, backend=backend, fullgraph=True)
    try:
        with torch.no_grad(), deltapass.session(steps=STEPS) as session:
            outputs = []
            for step, call in enumerate(calls):
                session.step(step)
                outputs.append(compiled(**call))
    except Exception:
        if not is_captured(model, calls[0]):
            return "broken"
        raise
    spans = [entry.realised for entry in session.report().entries]
    if not any(spans):
        plain = [model(**call) for call in calls]
        assert all(map(equal, outputs, plain))
        return "refused"
    (outlined,) = outlines
    oracle = BlockOracle(model, blocks_of(model, outlined), outlined.stack.seams)
    for output, call, span in zip(outputs, calls, spans, strict=True):
        assert equal(output, oracle.step(call, span)), f"span {span}"
    with warnings.catch_warnings():
        report = deltapass.explain(model, options={**OPTIONS, "steps": STEPS}, **calls[0])
    full = report.plain_macs.full / STEPS
    assert all(cost.macs.full < 0.99 * full for cost in report.variants if "cached" in cost.name)
    return f"{len(outlined.stack)} blocks"


def equal(one: Any, other: Any) -> bool:
    leaves = torch.utils._pytree.tree_leaves
    return all(map(torch.equal, *(filter(torch.is_tensor, leaves(each)) for each in (one, other))))
