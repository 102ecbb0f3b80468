"""Stage 2: find the ordered stack of blocks in a captured graph. Reads the graph, knows no model.

First choice is the module stack that the tracer leaves on every node: blocks are the nodes under
one numbered entry of a container. Without it, blocks are the longest run of a repeating sequence
of operations, cut where the fewest values are alive.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final, final

from torch import fx

from deltapass.compiler.repeats import find_repeats
from deltapass.compiler.streams import pair_streams
from deltapass.errors import NoBlocksError, StreamError
from deltapass.graph.program import Block, Captured, Macs, Stack

MIN_BLOCKS: Final = 2


def find_blocks(captured: Captured) -> Stack:
    """Find the stack of repeated blocks that holds most of the model's work.

    Args:
        captured: The graph, with or without module-stack metadata.

    Returns:
        The blocks in execution order.

    Raises:
        NoBlocksError: If neither the metadata nor the operations repeat.
    """
    containers = _containers(captured)
    if containers:
        main = max(range(len(containers)), key=lambda i: _cost(captured, containers[i]).full)
        return Stack(blocks=_extend(captured, containers, main), found_by="module stack")
    blocks = find_repeats(captured)
    # Small repetitions are everywhere; a stack of blocks is most of what a denoiser computes.
    total = sum(captured.macs.values(), Macs()).full
    if len(blocks) < MIN_BLOCKS or _cost(captured, blocks).full * 2 < total:
        raise NoBlocksError(captured.operations, "neither module lists nor operations repeat")
    return Stack(blocks=blocks, found_by="repeated structure")


@final
@dataclass(frozen=True, slots=True)
class _Entry:
    """One numbered module on the stack of a node: `key` tells repeated calls apart."""

    container: str
    index: str
    key: str


def _containers(captured: Captured) -> list[tuple[Block, ...]]:
    """Groups of two or more blocks that stand one after another in one container."""
    nodes = list(captured.module.graph.nodes)
    entries = [list(_numbered(node)) if node.op.startswith("call") else [] for node in nodes]
    counts: dict[str, set[str]] = {}
    for entry in (entry for found in entries for entry in found):
        counts.setdefault(entry.container, set()).add(entry.key)
    groups: dict[str, dict[_Entry, list[int]]] = {}
    for position, found in enumerate(entries):
        # The outermost container of several modules: lists inside a block do not count.
        outer = next((e for e in found if len(counts[e.container]) >= MIN_BLOCKS), None)
        if outer is not None:
            groups.setdefault(outer.container, {}).setdefault(outer, []).append(position)
    stacks = [_in_order(instances) for instances in groups.values()]
    # Layers in a torch.nn.Sequential are numbered too, but carry no stream. Data flow tells; only
    # where it tells of no stack at all, as with norms after the additions, may shape.
    kept = _residual_stacks(captured, stacks, by_shape=False)
    kept = kept or _residual_stacks(captured, stacks, by_shape=True)
    return sorted(kept, key=lambda stack: stack[0].first)


def _residual_stacks(
    captured: Captured, stacks: Sequence[tuple[Block, ...]], *, by_shape: bool
) -> list[tuple[Block, ...]]:
    """The stacks in which two blocks or more hand on nothing but streams."""
    return [
        stack
        for stack in stacks
        if sum(_is_residual(captured, [block], by_shape=by_shape) for block in stack) >= MIN_BLOCKS
    ]


def _numbered(node: fx.Node) -> Iterator[_Entry]:
    """Entries such as `blocks.3` on a node's module stack, outermost first."""
    stack: dict[str, Any] = node.meta.get("nn_module_stack") or {}
    for key, (path, _) in stack.items():
        found = re.fullmatch(r"(.*)\.(\d+)", _plain_path(str(path)))
        if found:
            yield _Entry(found.group(1), found.group(2), str(key))


def _plain_path(path: str) -> str:
    """`L['self'].__dict__['_modules']['blocks']._modules['3']` -> `L.self.blocks.3`."""
    path = re.sub(r"\.?__dict__\['_modules'\]|\._modules", "", path)
    return re.sub(r"\['?([^'\]]*)'?\]", r".\1", path)


def _in_order(instances: dict[_Entry, list[int]]) -> tuple[Block, ...]:
    """Blocks by position; empty where the ranges of two blocks overlap."""
    blocks = sorted(
        (
            Block(name=_block_name(entry), first=positions[0], stop=positions[-1] + 1)
            for entry, positions in instances.items()
        ),
        key=lambda block: block.first,
    )
    overlap = any(one.stop > two.first for one, two in itertools.pairwise(blocks))
    return () if overlap else tuple(blocks)


def _block_name(entry: _Entry) -> str:
    container = entry.container.rsplit(".", 1)[-1]
    return f"{container}.{entry.index}"


def _cost(captured: Captured, blocks: Sequence[Block]) -> Macs:
    names = [node.name for node in captured.module.graph.nodes]
    covered = (name for block in blocks for name in names[block.first : block.stop])
    return sum((captured.macs.get(name, Macs()) for name in covered), Macs())


def _extend(
    captured: Captured, containers: Sequence[tuple[Block, ...]], main: int
) -> tuple[Block, ...]:
    """Join neighbouring containers that carry the same residual streams on."""
    stack = containers[main]
    for later in containers[main + 1 :]:
        if not _joins(captured, stack[-1], later[0]):
            break
        stack = (*stack, *later)
    for earlier in reversed(containers[:main]):
        if not _joins(captured, earlier[-1], stack[0]):
            break
        stack = (*earlier, *stack)
    return stack


def _joins(captured: Captured, one: Block, two: Block) -> bool:
    return one.stop <= two.first and _is_residual(captured, (one, two), by_shape=False)


def _is_residual(captured: Captured, blocks: Sequence[Block], *, by_shape: bool) -> bool:
    """Whether all that these blocks hand on are streams that entered them."""
    try:
        return bool(pair_streams(captured, blocks, "the stack", by_shape=by_shape))
    except StreamError:
        return False
