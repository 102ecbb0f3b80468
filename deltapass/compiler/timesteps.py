"""Which input is the timestep, and which others belong to the step like it.

Told by name and by how an input is read: a timestep is one number a call, a sample or a token, from
which waves (sine and cosine) or a layer of one feature make an embedding. So is an embedded
guidance weight, which stays the same along a trajectory: where names do not part the two, neither
is taken for the timestep.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from enum import Flag, auto
from typing import Final

import torch
from torch import fx

from deltapass.compiler.windows import name_of
from deltapass.graph.program import Captured, Found, Role, TensorSpec, shown

# Of several, the first in this order is the timestep; the others follow it.
TIMESTEP_NAMES: Final = (
    "timestep", "timesteps", "t", "time", "sigma", "sigmas", "noise_level", "noise_levels",
    "timestep_ratio", "t_cond", "time_cond", "noise_labels", "log_snr", "logsnr",
)  # fmt: skip
TIMESTEP_WORDS: Final = frozenset({"timestep", "timesteps", "sigma", "sigmas", "logsnr"})
# Words of names of other numbers that are embedded like a timestep.
OTHER_WORDS: Final = frozenset(
    {
        "guidance", "cfg", "scale", "scales", "strength", "weight", "weights", "omega", "fps",
        "rate", "size", "sizes", "crop", "crops", "aspect", "ratio", "resolution", "height",
        "width", "duration", "seconds", "length", "frames", "label", "labels", "class", "id",
        "ids", "score", "aesthetic", "motion", "bucket", "mask", "index",
    }
)  # fmt: skip
WAVES: Final = frozenset({"sin", "cos", "sincos"})
LAYERS: Final = frozenset({"linear", "addmm", "matmul", "mm", "bmm", "baddbmm", "einsum", "conv1d"})
PER_TOKEN_DIMS: Final = 2  # of more than one element: the batch, and the tokens or frames


class Read(Flag):
    """How the numbers of an input are read before they meet other inputs."""

    NOT = 0
    WAVES = auto()  # sine and cosine of each number
    ALONE = auto()  # a layer that takes each number by itself
    TOGETHER = auto()  # a layer that takes several of them as a vector
    LOOKED_UP = auto()  # as a row of a table


def timesteps(captured: Captured, data: Sequence[str], batch: int) -> dict[str, tuple[Role, Found]]:
    """The timestep among the data inputs, and those that go with it, such as a second one.

    Args:
        captured: The graph.
        data: Names of its data inputs.
        batch: Samples in a call.

    Returns:
        Input -> role, and how it was found; empty where no timestep can be told.
    """
    nodes = [node for node in captured.graph.find_nodes(op="placeholder") if node.name in data]
    reads = {node.name: how_read(captured, node, nodes) for node in nodes}
    specs = {node.name: spec for node in nodes if (spec := captured.spec(node))}
    single = [name for name, spec in specs.items() if _is_single(spec, batch)]
    named = [
        name
        for name, spec in specs.items()
        if shown(name) in TIMESTEP_NAMES
        and (name in single or _is_per_token(spec))
        and Read.TOGETHER not in reads[name]
    ]
    named.sort(key=lambda name: TIMESTEP_NAMES.index(shown(name)))
    like = [
        name
        for name in single
        if words_of(name) & TIMESTEP_WORDS and reads[name] & (Read.WAVES | Read.ALONE)
    ]
    if named or len(like) == 1:
        first = (named or like)[0]
        others = dict.fromkeys((*named, *like), (Role.PER_STEP, Found.NAME))
        return others | {first: (Role.TIMESTEP, Found.NAME)}
    alone = None if like else _by_flow_alone(single, specs, reads)
    return {} if alone is None else {alone: (Role.TIMESTEP, Found.FLOW)}


def _by_flow_alone(
    single: Iterable[str], specs: dict[str, TensorSpec], reads: dict[str, Read]
) -> str | None:
    """The only number that could be a timestep, if it is embedded like one."""
    possible = [
        name
        for name in single
        if not words_of(name) & OTHER_WORDS
        and (specs[name].dtype.is_floating_point or Read.WAVES in reads[name])
    ]
    embedded = [name for name in possible if reads[name] & (Read.WAVES | Read.ALONE)]
    return embedded[0] if len(possible) == len(embedded) == 1 else None


def words_of(name: str) -> frozenset[str]:
    """The words of an input's name: `timestep_r` -> timestep, r."""
    return frozenset(shown(name).lower().split("_"))


def _is_single(spec: TensorSpec, batch: int) -> bool:
    """Whether it is one number a call or a sample."""
    if spec.dtype in (torch.bool, torch.complex64, torch.complex128):
        return False
    return all(size == 1 for size in spec.shape[1:]) and spec.shape[:1] in ((), (1,), (batch,))


def _is_per_token(spec: TensorSpec) -> bool:
    return sum(size > 1 for size in spec.shape) <= PER_TOKEN_DIMS


def how_read(captured: Captured, node: fx.Node, inputs: Sequence[fx.Node]) -> Read:
    """How the numbers of an input are read, until they meet those of another of `inputs`."""
    others = {one for one in inputs if one is not node}
    mine, read = {node}, Read.NOT
    for user in captured.nodes:
        operands = user.all_input_nodes
        if others.intersection(operands):
            others.add(user)  # from here on they are not alone
        if user in others or not mine.intersection(operands):
            continue
        reading = _reading(captured, user, mine)
        read |= reading
        if reading is Read.NOT:
            mine.add(user)
    return read


def _reading(captured: Captured, user: fx.Node, mine: set[fx.Node]) -> Read:
    name = name_of(user.target)
    if name in WAVES:
        return Read.WAVES
    if name == "embedding":
        return Read.LOOKED_UP
    if name not in LAYERS:
        return Read.NOT
    value = next(one for one in user.all_input_nodes if one in mine)
    spec = captured.spec(value)
    alone = spec is not None and bool(spec.shape) and spec.shape[-1] == 1
    if name == "einsum" or (spec is not None and len(spec.shape) <= 1 and name != "linear"):
        return Read.NOT  # an outer product
    return Read.ALONE if alone else Read.TOGETHER
