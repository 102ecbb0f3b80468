"""Slots: memory at addresses that never change, where graphs find what varies from call to call."""

from __future__ import annotations

import weakref
from typing import Any, Final, NamedTuple, final

import torch

from deltapass.errors import InternalError

UNCOUNTED: Final = -1  # an inference tensor counts no changes: it must be copied every time


class Held(NamedTuple):
    """What was copied into a slot: the object (weakly held), its version, its place in memory."""

    tensor: weakref.ref[torch.Tensor]
    version: int
    place: int

    def is_still(self, given: torch.Tensor) -> bool:
        """Whether this is the same tensor, unchanged since."""
        return self.tensor() is given and self[1:] == _state(given)


@final
class Slot:
    """Memory for one input, laid out as the input is.

    An input that repeats numbers (strides of 0) repeats them here.
    """

    def __init__(self, given: torch.Tensor) -> None:
        """Empty, for tensors like this one."""
        dims = list(zip(given.shape, given.stride(), strict=True))
        self._distinct = tuple(slice(None) if step else slice(0, 1) for _, step in dims)
        shape = [size if step else min(size, 1) for size, step in dims]
        # What inference mode makes could not be written to outside it.
        with torch.inference_mode(False):
            self._memory = torch.empty_strided(
                shape, given.stride(), dtype=given.dtype, device=given.device
            )
            self.tensor = self._memory.expand(given.shape)
        self._held: Held | None = None

    def fill(self, given: torch.Tensor, *, always: bool) -> None:
        """Copy a tensor in; unless `always`, not one that is here already."""
        held = self._held
        if not always and held is not None and held.is_still(given):
            return
        if given.shape != self.tensor.shape:  # copying would repeat it silently
            fact = f"a graph for {tuple(self.tensor.shape)} is given {tuple(given.shape)}"
            raise InternalError(fact)
        self._held = None  # a copy that fails leaves neither
        self._memory.copy_(given[self._distinct])
        version, place = _state(given)
        if version != UNCOUNTED:
            self._held = Held(weakref.ref(given), version, place)


@final
class Slots:
    """The slots of one model, shared by its graphs, of which one runs at a time."""

    def __init__(self) -> None:
        self._slots: dict[tuple[Any, ...], Slot] = {}

    def of(self, at: int, given: torch.Tensor) -> Slot:
        """The slot of the argument at a position, for tensors like this one."""
        key = (at, given.shape, given.stride(), given.dtype)
        if key not in self._slots:
            self._slots[key] = Slot(given)
        return self._slots[key]


def _state(tensor: torch.Tensor) -> tuple[int, int]:
    return (UNCOUNTED if tensor.is_inference() else tensor._version, tensor.data_ptr())


def copy_out(value: Any) -> Any:
    """A copy of what a graph gave, laid out as it is; what is no tensor stays."""
    if not torch.is_tensor(value):
        return value
    if 0 in value.stride():
        return value.clone()
    made = torch.empty_strided(value.shape, value.stride(), dtype=value.dtype, device=value.device)
    return made.copy_(value)
