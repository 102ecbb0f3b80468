"""Stage 1, last part: what every data input is to the pass.

The user's statement is the last word. Where there is none, data flow tells, and names only choose
where it leaves a choice. An input wrongly taken for the noisy sample would hide a changed prompt;
wrongly taken for conditioning it is never cached, which is said: so where nothing tells, it is
conditioning.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Final, final

import torch
from torch import fx
from torch.utils._pytree import tree_iter

from deltapass.compiler.continuation import Continuation
from deltapass.compiler.timesteps import timesteps, words_of
from deltapass.errors import OptionError, did_you_mean
from deltapass.graph.program import Captured, Found, Input, Role, TensorSpec, shown
from deltapass.options import NOTHING_STATED, StatedInputs

SAMPLE_NAMES: Final = frozenset(
    {
        "hidden_states", "sample", "samples", "latent", "latents", "x", "x_t", "xt", "z", "z_t",
        "zt", "latent_model_input", "input_ids",
    }
)  # fmt: skip
# Words that the name of a sample may hold, the surest apart, and words that it does not.
NOISY_WORDS: Final = frozenset({"noisy", "noised", "xt", "zt"})
SAMPLE_WORDS: Final = frozenset(
    {*NOISY_WORDS, "hidden", "sample", "samples", "latent", "latents", "x", "z"}
)
OTHER_WORDS: Final = frozenset(
    {
        "encoder", "text", "txt", "prompt", "prompts", "context", "ctx", "caption", "captions",
        "cond", "condition", "conditioning", "control", "controlnet", "mask", "masks", "label",
        "labels", "class", "pooled", "guidance", "ref", "reference", "clean", "source", "cls",
    }
)  # fmt: skip
MIN_RANK: Final = 2


def assign_roles(captured: Captured, stated: StatedInputs = NOTHING_STATED) -> Captured:
    """The graph with the role of every data input known.

    Raises:
        OptionError: If a stated name is that of no input of the model.
    """
    found = _Roles(captured).found()
    inputs = tuple(_told(given, found) for given in captured.inputs)
    return replace(captured, inputs=state(inputs, stated))


def _told(given: Input, found: dict[str, tuple[Role, Found]]) -> Input:
    role, how = found.get(given.name, (given.role, given.found))
    return replace(given, role=role, found=how)


def state(inputs: Sequence[Input], stated: StatedInputs) -> tuple[Input, ...]:
    """The inputs with the roles that the user states; a list of samples is the whole list.

    Raises:
        OptionError: If a stated name is that of no input of the model.
    """
    known = [shown(given.name) for given in inputs if _may_be_stated(given)]
    for role, name in stated.exact():
        if name not in known:
            hint = did_you_mean(name, known, "; did you mean {!r}?")
            listed = ", ".join(known) or "(there is none)"
            raise OptionError(f"inputs[{role!r}]", name, f"an input of the model: {listed}{hint}")
    told = tuple(_stated_exactly(given, stated) for given in inputs)
    data = [shown(given.name) for given in told if given.role in (Role.DATA, Role.PER_STEP)]
    for part in stated.per_step:
        if not any(part in name for name in data):
            listed = ", ".join(data) or "(there is none)"
            raise OptionError("per_step", part, f"part of the name of a data input: {listed}")
    return tuple(_stated_per_step(given, stated) for given in told)


def _may_be_stated(given: Input) -> bool:
    return given.spec is not None and given.role is not Role.WEIGHT


def _stated_exactly(given: Input, stated: StatedInputs) -> Input:
    if not _may_be_stated(given):
        return given
    name = shown(given.name)
    if stated.sample is not None and name in stated.sample:
        return replace(given, role=Role.SAMPLE, found=Found.STATED)
    if name == stated.timestep:
        return replace(given, role=Role.TIMESTEP, found=Found.STATED)
    replaced = (given.role is Role.SAMPLE and stated.sample is not None) or (
        given.role is Role.TIMESTEP and stated.timestep is not None
    )
    return replace(given, role=Role.DATA, found=Found.STATED) if replaced else given


def _stated_per_step(given: Input, stated: StatedInputs) -> Input:
    named = any(part in shown(given.name) for part in stated.per_step)
    if given.role is not Role.DATA or not named:
        return given
    return replace(given, role=Role.PER_STEP, found=Found.STATED)


@final
class _Roles:
    """What data flow and names tell of one graph."""

    def __init__(self, captured: Captured) -> None:
        self._captured = captured
        returned = tree_iter(captured.graph.output_node().args[0])
        self._outputs = [node for node in returned if isinstance(node, fx.Node)]
        data = (given for given in captured.inputs if given.role is Role.DATA)
        self._data = {given.name: given.spec for given in data if given.spec}

    def found(self) -> dict[str, tuple[Role, Found]]:
        """Input -> role, for those that are no conditioning, and how it was found."""
        specs = [self._captured.spec(node) for node in self._outputs]
        batch = next((spec.shape[0] for spec in specs if spec and spec.shape), 1)
        found = timesteps(self._captured, list(self._data), batch)
        rest = frozenset(self._data) - frozenset(found)
        return found | {name: (Role.SAMPLE, how) for name, how in self._samples(rest).items()}

    def _samples(self, data: frozenset[str]) -> dict[str, Found]:
        """The noisy samples: what the outputs continue, each its own."""
        continuation = Continuation(self._captured, data)
        chosen: dict[str, Found] = {}
        for output in self._outputs:
            spec = self._captured.spec(output)
            if spec is not None and len(spec.shape) >= MIN_RANK:
                chosen |= self._continued(continuation.of(output), data, spec)
        if len(chosen) <= 1:
            return chosen
        # An output may be a text that was read along: several samples have names of samples.
        named = {name: how for name, how in chosen.items() if _has_sample_name(name)}
        likely = [name for name in chosen if not words_of(name) & OTHER_WORDS]
        return named or {name: chosen[name] for name in likely if len(likely) == 1}

    def _continued(
        self, names: Iterable[str], data: Iterable[str], output: TensorSpec
    ) -> dict[str, Found]:
        """The one of the inputs that an output continues that is its sample, if that is sure."""
        possible = [name for name in names if self._data[name].dtype is not torch.bool]
        if not possible:  # it may be read as a context only; then its name must say what it is
            named = [n for n in data if shown(n) in SAMPLE_NAMES and self._is_like(n, output)]
            return {named[0]: Found.NAME} if len(named) == 1 else {}
        possible = [n for n in possible if self._is_like(n, output)] or possible
        # Places or labels of each token may be whole numbers; tokens are, where nothing else is.
        floating = [n for n in possible if self._data[n].dtype.is_floating_point]
        possible = floating or possible
        if len(possible) == 1:
            sure = not words_of(possible[0]) & OTHER_WORDS
            return {possible[0]: Found.FLOW} if sure else {}
        exact = [n for n in possible if shown(n) in SAMPLE_NAMES]
        noisy = [n for n in possible if words_of(n) & NOISY_WORDS]
        named = exact or noisy or [n for n in possible if _has_sample_name(n)]
        return {named[0]: Found.NAME} if len(named) == 1 else {}

    def _is_like(self, name: str, output: TensorSpec) -> bool:
        """Whether an input has an output's shape up to the channels, wherever these are."""
        ours, theirs = self._data[name].shape, output.shape
        if len(ours) < MIN_RANK and len(theirs) < MIN_RANK:
            return False
        if not self._data[name].dtype.is_floating_point:  # tokens have no channels
            return any(ours == rest for rest in _without_one(theirs))
        return any(rest in set(_without_one(theirs)) for rest in _without_one(ours))


def _has_sample_name(name: str) -> bool:
    words = words_of(name)
    exact = shown(name) in SAMPLE_NAMES
    return exact or (bool(words & SAMPLE_WORDS) and not words & OTHER_WORDS)


def _without_one(shape: tuple[int, ...]) -> list[tuple[int, ...]]:
    """A shape without each of its dimensions but the first, the batch."""
    return [shape[:dim] + shape[dim + 1 :] for dim in range(1, len(shape))]
