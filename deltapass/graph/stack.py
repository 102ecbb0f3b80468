"""The blocks that stage 2 finds in a captured graph: ranges of its nodes, in order."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

from deltapass.errors import counted


@final
@dataclass(frozen=True, kw_only=True, slots=True)
class Block:
    """One block of the stack: the half-open range of node positions it covers."""

    name: str
    first: int
    stop: int


@final
@dataclass(frozen=True, kw_only=True, slots=True)
class Ends:
    """Where a nested block begins and ends.

    `live_in` is the value on the way down that enters it and also goes past it, `live_out` the one
    on the way up that leaves it, before the two are joined. Only they do.
    """

    live_in: str
    live_out: str


@final
@dataclass(frozen=True, kw_only=True, slots=True)
class Stack:
    """The ordered blocks on the residual stream, and how they were found.

    `seams` are the blocks, by number, before which the streams are laid out anew, as where two are
    concatenated into one: see deltapass/compiler/seams.py. Blocks of a U-shaped model are nested:
    each holds all those after it, and has its `ends`, which are empty otherwise.
    """

    blocks: tuple[Block, ...]
    found_by: str
    seams: tuple[int, ...] = ()
    ends: tuple[Ends, ...] = ()

    @property
    def is_nested(self) -> bool:
        """Whether blocks lie inside each other."""
        return bool(self.ends)

    def seams_within(self, start: int, stop: int) -> tuple[int, ...]:
        """The seams inside blocks start .. stop-1, the last one first."""
        return tuple(at for at in reversed(self.seams) if start < at < stop)

    def __len__(self) -> int:
        return len(self.blocks)

    def __str__(self) -> str:
        names = f"{self.blocks[0].name} .. {self.blocks[-1].name}"
        kind = "nested block" if self.is_nested else "block"
        return f"{counted(len(self), kind)} ({names}), found by {self.found_by}"
