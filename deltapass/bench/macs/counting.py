"""Multiply-accumulates of one call, by the module that does them.

The model runs once on meta tensors: nothing is computed, and no weight has a value. The formulas
are those of the pass (`OperatorCosts`), which counts the same on its graphs.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Final, final

import torch
from torch import nn

from deltapass.compiler.fake_run import OperatorCosts
from deltapass.graph.program import Macs

LAYERS: Final = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
HOLDERS: Final = (nn.ModuleList, nn.ModuleDict)  # which nothing calls


@final
@dataclass(frozen=True)
class ModuleMacs:
    """MACs of one call by the path of the innermost module; "" is the model itself."""

    by_path: Mapping[str, Macs]

    @property
    def total(self) -> Macs:
        """Of the whole call."""
        return sum(self.by_path.values(), Macs())

    def within(self, patterns: Iterable[str]) -> Macs:
        """Of all modules of these paths, and all in them; `*` stands for any part of a path."""
        wanted = tuple(patterns)
        found = (
            macs
            for path, macs in self.by_path.items()
            if any(
                fnmatch.fnmatchcase(path, each) or fnmatch.fnmatchcase(path, f"{each}.*")
                for each in wanted
            )
        )
        return sum(found, Macs())

    def blocks(self, held: str) -> tuple[Macs, ...]:
        """Of each module of a list, in order."""
        numbers = {
            int(path[len(held) + 1 :].partition(".")[0])
            for path in self.by_path
            if path.startswith(f"{held}.")
        }
        return tuple(self.within([f"{held}.{number}"]) for number in sorted(numbers))


@torch.no_grad()
def count_call(model: nn.Module, inputs: Mapping[str, Any], args: Sequence[Any] = ()) -> ModuleMacs:
    """Run a model once, and count.

    Args:
        model: On meta tensors, or any.
        inputs: By their names; tensors of the model's device.
        args: Those that have a place instead.
    """
    counter = _Counter(dict(model.named_modules()))
    hooks = [hook for path in counter.modules for hook in counter.hooks(path)]
    try:
        with counter.costs:
            model(*args, **inputs)
        counter.settle()
    finally:
        for hook in hooks:
            hook.remove()
    return ModuleMacs(MappingProxyType(counter.found))


@final
class _Counter:
    """Knows which module is running, and whose the operations are."""

    def __init__(self, modules: Mapping[str, nn.Module]) -> None:
        self.modules = modules
        self.found: dict[str, Macs] = {}
        self.costs = OperatorCosts()
        self._within: list[tuple[str, bool]] = [("", False)]  # path, and whether it is a layer

    def hooks(self, path: str) -> tuple[Any, Any]:
        """What tells when a module begins and ends; to be removed."""
        module = self.modules[path]
        layer = isinstance(module, LAYERS)
        around = {each for each in _above(path) if not isinstance(self.modules[each], HOLDERS)}

        def entered(*_: Any) -> None:
            self.settle()
            # A part that another module borrows is the work of the one that calls it.
            borrowed = around - {each for each, _ in self._within}
            self._within.append((self._within[-1][0] if borrowed else path, layer))

        def left(*_: Any) -> None:
            self.settle()
            self._within.pop()

        return module.register_forward_pre_hook(entered), module.register_forward_hook(left)

    def settle(self) -> None:
        """What was counted since the last time belongs to the module that is running."""
        path, layer = self._within[-1]
        made, self.costs.macs = self.costs.macs, Macs()
        # On a sliced input torch runs a linear layer as a batched product; it stays a layer.
        made = Macs(made.full, made.full) if layer else made
        if made.full:
            self.found[path] = self.found.get(path, Macs()) + made


def _above(path: str) -> list[str]:
    """Paths of all modules that hold it, the model itself too."""
    parts = path.split(".") if path else []
    return [".".join(parts[:count]) for count in range(len(parts))]
