"""Stage 2: find the ordered stack of blocks in a captured graph. Reads the graph, knows no model.

First choice is the module stack that the tracer leaves on every node: blocks are modules called in
turn, each of which carries on the residual streams of the one before. Without it, blocks are the
longest run of a repeating sequence of operations, cut where the fewest values are alive. Either
must be a stack (`_why_not`): residual streams that start at the noisy sample, in blocks that
together are most of what the model computes.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterator
from typing import Final

from deltapass.compiler.early_sums import with_early_sums
from deltapass.compiler.flow import Flow
from deltapass.compiler.modules import ModuleCall, called_by
from deltapass.compiler.nested import find_nested
from deltapass.compiler.repeats import find_repeats
from deltapass.errors import NoBlocksError
from deltapass.graph.program import Captured
from deltapass.graph.stack import Block, Stack

MIN_BLOCKS: Final = 2
# Of the model's multiply-accumulates, the least that blocks hold together; of theirs, the most that
# one of them may. docs/architecture.md has the evidence.
LEAST_SHARE: Final = 0.5
MOST_IN_ONE: Final = 0.9
NOTHING: Final = "neither modules called in turn nor operations repeat on a residual stream"
Calls = tuple[ModuleCall, ...]
Blocks = tuple[Block, ...]


def find_stack(captured: Captured) -> tuple[Captured, Stack]:
    """As `find_blocks`, and the graph that the stack is of: the same, perhaps in another order.

    Raises:
        NoBlocksError: As `find_blocks`.
    """
    try:
        return captured, find_blocks(captured)
    except NoBlocksError:
        moved = with_early_sums(captured)
        if moved is captured:
            raise
        return moved, find_blocks(moved)


def find_blocks(captured: Captured) -> Stack:
    """Find the stack of residual blocks that holds most of the model's work.

    Args:
        captured: The graph, with or without module-stack metadata.

    Returns:
        The blocks in execution order.

    Raises:
        NoBlocksError: If neither modules called in turn nor repeated operations are such a stack.
    """
    flow = Flow(captured)
    said = NOTHING
    for blocks, found_by in _candidates(flow):
        reason = _why_not(flow, blocks)
        if not reason:
            return Stack(blocks=blocks, found_by=found_by, seams=_seams(flow, blocks))
        said = reason if said == NOTHING else said
    nested = find_nested(flow)
    if nested is not None:
        return nested
    raise NoBlocksError(captured.operations, said)


def _candidates(flow: Flow) -> Iterator[tuple[Blocks, str]]:
    """Runs of blocks that may be the stack, the costliest first."""
    runs = [tuple(call.block for call in chain) for chain in _chains(flow)]
    for blocks in sorted(runs, key=lambda blocks: -flow.macs(*blocks)):
        yield blocks, "module stack"
    yield find_repeats(flow.captured), "repeated structure"


def _why_not(flow: Flow, blocks: Blocks) -> str:
    """Why blocks are no stack that is worth caching, in words; empty if they are one."""
    residual = [block for block in blocks if flow.streams(block)]
    if len(residual) < MIN_BLOCKS:
        return NOTHING
    names = f"{blocks[0].name} .. {blocks[-1].name}"
    if not flow.starts_at_sample(residual[0]):
        return f"{names} carry no stream of the noisy sample"
    model, stack = flow.macs_of_model, flow.macs(*blocks)
    if stack < LEAST_SHARE * model:
        return f"{names}, which carry a residual stream, hold {stack / model:.1%} of its MACs"
    largest = max(blocks, key=flow.macs)
    share = flow.macs(largest) / stack if stack else 0.0
    return f"of {names}, {largest.name} is {share:.1%} of the work" if share > MOST_IN_ONE else ""


def _seams(flow: Flow, blocks: Blocks) -> tuple[int, ...]:
    pairs = enumerate(itertools.pairwise(blocks), start=1)
    return tuple(at for at, (one, two) in pairs if flow.is_seam(one, two))


def _chains(flow: Flow) -> Iterator[Calls]:
    """Modules that carry on each other's streams, within the whole model and its costliest part."""
    caller: ModuleCall | None = None
    model = flow.macs_of_model
    while True:
        calls = called_by(flow.captured, caller)
        yield from (_flattened(flow, chain) for chain in _linked(flow, calls))
        costly = (call for call in calls if flow.macs(call.block) >= LEAST_SHARE * model)
        caller = next(costly, None)
        if caller is None:
            return


def _linked(flow: Flow, calls: Calls) -> list[Calls]:
    """Calls of one caller as chains, in each of which one carries on the streams of the last."""
    chains: list[Calls] = []
    for call in _members(flow, calls):
        ends = (at for at in reversed(range(len(chains))) if _links(flow, chains[at][-1], call))
        at = next(ends, None)
        if at is None:
            chains.append((call,))
        else:
            chains[at] = (*chains[at], call)
    return chains


def _members(flow: Flow, calls: Calls) -> Calls:
    """Calls of residual blocks, and those of the same classes.

    One that joins a long skip, or hands on another value too, is a block still if its like are. But
    a Sequential is like no other.
    """
    residual = {call for call in calls if flow.streams(call.block)}
    kinds = {call.kind for call in residual if "torch.nn.modules" not in call.kind}
    return tuple(call for call in calls if call in residual or call.kind in kinds)


def _links(flow: Flow, one: ModuleCall, two: ModuleCall) -> bool:
    if flow.streams(two.block):
        return flow.leads(one.block, two.block)
    return one.kind == two.kind and flow.is_read_by(one.block, two.block)


def _flattened(flow: Flow, chain: Calls) -> Calls:
    """The blocks of a chain, where some of its modules are stages that hold several blocks each."""
    return tuple(block for call in chain for block in _of_stage(flow, call))


def _of_stage(flow: Flow, call: ModuleCall) -> Calls:
    """The blocks of a stage; of a block itself, whose parts may be residual too, only that.

    A stage repeats its blocks; the parts of a block, attention and feed-forward, are not alike.
    """
    inner = _linked(flow, called_by(flow.captured, call)) if flow.streams(call.block) else []
    for chain in inner:
        blocks = [part.block for part in chain]
        often = Counter(flow.signature(block) for block in blocks)
        repeats = max(often.values()) >= MIN_BLOCKS
        if repeats and flow.macs(*blocks) >= LEAST_SHARE * flow.macs(call.block):
            return _flattened(flow, chain)
    return (call,)
