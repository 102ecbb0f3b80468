"""Stage 2: find the ordered stack of blocks in a captured graph. Reads the graph, knows no model.

First choice is the module stack that the tracer leaves on every node: blocks are the nodes under
one numbered entry of a container. Without it, blocks are the longest run of a repeating sequence
of operations, cut where the fewest values are alive.
"""

from __future__ import annotations

import itertools
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final, final

from torch import fx

from deltapass.compiler.addends import Addends
from deltapass.compiler.repeats import find_repeats
from deltapass.compiler.streams import pair_streams
from deltapass.errors import NoBlocksError, StreamError
from deltapass.graph.program import Block, Captured, Macs, Stack

MIN_BLOCKS: Final = 2
Blocks = tuple[Block, ...]


def find_blocks(captured: Captured) -> Stack:
    """Find the stack of repeated blocks that holds most of the model's work.

    Args:
        captured: The graph, with or without module-stack metadata.

    Returns:
        The blocks in execution order.

    Raises:
        NoBlocksError: If neither the metadata nor the operations repeat.
    """
    containers = _Containers(captured)
    stacks = containers.stacks()
    if stacks:
        main = max(stacks, key=lambda blocks: _cost(captured, blocks))
        return Stack(blocks=containers.extended(stacks, main), found_by="module stack")
    blocks = find_repeats(captured)
    # Small repetitions are everywhere; a stack of blocks is most of what a denoiser computes.
    total = sum(captured.macs.values(), Macs()).full
    if len(blocks) < MIN_BLOCKS or _cost(captured, blocks) * 2 < total:
        raise NoBlocksError(captured.operations, "neither module lists nor operations repeat")
    return Stack(blocks=blocks, found_by="repeated structure")


def _cost(captured: Captured, blocks: Sequence[Block]) -> float:
    covered = (node for block in blocks for node in captured.nodes[block.first : block.stop])
    return sum(captured.macs[node.name].full for node in covered if node.name in captured.macs)


@final
@dataclass(frozen=True, slots=True)
class _Entry:
    """One numbered module on the stack of a node: `key` tells repeated calls apart."""

    container: str
    index: str
    key: str


@final
class _Containers:
    """The containers of numbered modules in a graph, such as module lists."""

    def __init__(self, captured: Captured) -> None:
        self._captured = captured
        self._addends = Addends(captured)
        self._known: dict[tuple[str, str], _Entry | None] = {}

    def stacks(self) -> list[Blocks]:
        """Groups of two or more blocks that stand one after another in one container."""
        stacks = [_in_order(instances) for instances in self._instances().values()]
        # Layers in a torch.nn.Sequential are numbered too, but carry no stream. Data flow tells;
        # only where it tells of no stack at all, as with norms after the additions, may shape.
        kept = self._residual(stacks, by_shape=False) or self._residual(stacks, by_shape=True)
        return sorted(kept, key=lambda stack: stack[0].first)

    def extended(self, stacks: Sequence[Blocks], main: Blocks) -> Blocks:
        """Join neighbouring containers that carry the same residual streams on."""
        at = stacks.index(main)
        stack = main
        for later in stacks[at + 1 :]:
            if not self._joins(stack[-1], later[0]):
                break
            stack = (*stack, *later)
        for earlier in reversed(stacks[:at]):
            if not self._joins(earlier[-1], stack[0]):
                break
            stack = (*earlier, *stack)
        return stack

    def _instances(self) -> dict[str, dict[_Entry, list[int]]]:
        """Container -> its modules -> the positions of their nodes."""
        entries = {
            position: list(self._numbered(node))
            for position, node in enumerate(self._captured.nodes)
            if node.op.startswith("call")
        }
        distinct = {entry for found in entries.values() for entry in found}
        keys = {(entry.container, entry.key) for entry in distinct}
        counts = Counter(container for container, _ in keys)
        groups: dict[str, dict[_Entry, list[int]]] = {}
        for position, found in entries.items():
            # The outermost container of several modules: lists inside a block do not count.
            outer = next((e for e in found if counts[e.container] >= MIN_BLOCKS), None)
            if outer is not None:
                groups.setdefault(outer.container, {}).setdefault(outer, []).append(position)
        return groups

    def _numbered(self, node: fx.Node) -> Iterator[_Entry]:
        """Entries such as `blocks.3` on a node's module stack, outermost first."""
        stack: dict[str, Any] = node.meta.get("nn_module_stack") or {}
        for key, (path, _) in stack.items():
            if (key, path) not in self._known:
                self._known[key, path] = _entry(str(key), str(path))
            entry = self._known[key, path]
            if entry is not None:
                yield entry

    def _residual(self, stacks: Sequence[Blocks], *, by_shape: bool) -> list[Blocks]:
        """The stacks in which two blocks or more hand on nothing but streams."""
        return [
            stack
            for stack in stacks
            if sum(self._is_residual([block], by_shape=by_shape) for block in stack) >= MIN_BLOCKS
        ]

    def _joins(self, one: Block, two: Block) -> bool:
        return one.stop <= two.first and self._is_residual((one, two), by_shape=False)

    def _is_residual(self, blocks: Sequence[Block], *, by_shape: bool) -> bool:
        """Whether all that these blocks hand on are streams that entered them."""
        try:
            found = pair_streams(
                self._captured, blocks, "the stack", by_shape=by_shape, addends=self._addends
            )
        except StreamError:
            return False
        return bool(found)


def _entry(key: str, path: str) -> _Entry | None:
    """The entry of a module's path, if that ends with a number."""
    found = re.fullmatch(r"(.*)\.(\d+)", _plain_path(path))
    return _Entry(found.group(1), found.group(2), key) if found else None


def _plain_path(path: str) -> str:
    """`L['self'].__dict__['_modules']['blocks']._modules['3']` -> `L.self.blocks.3`."""
    path = re.sub(r"\.?__dict__\['_modules'\]|\._modules", "", path)
    return re.sub(r"\['?([^'\]]*)'?\]", r".\1", path)


def _in_order(instances: dict[_Entry, list[int]]) -> Blocks:
    """Blocks by position; empty where the ranges of two blocks overlap."""
    blocks = [
        Block(name=_block_name(entry), first=positions[0], stop=positions[-1] + 1)
        for entry, positions in instances.items()
    ]
    blocks.sort(key=lambda block: block.first)
    overlap = any(one.stop > two.first for one, two in itertools.pairwise(blocks))
    return () if overlap else tuple(blocks)


def _block_name(entry: _Entry) -> str:
    container = entry.container.rsplit(".", 1)[-1]
    return f"{container}.{entry.index}"
