"""How a model's blocks are called: which residual streams they take and give, in which order."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

Call = tuple[tuple[Any, ...], dict[str, Any]]
Values = tuple[Tensor | None, ...]


@dataclass(frozen=True)
class Streams:
    """How a block receives and returns the residual streams, always in one order.

    A stream that a block drops is None in `unpack` and in what `pack` is given.
    """

    take: Callable[[tuple[Any, ...], dict[str, Any]], tuple[Tensor, ...]]
    pack: Callable[[Values], Any]
    unpack: Callable[[Any], Values]


def _hidden(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    return args[0] if args else kwargs["hidden_states"]


def _encoder(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    return args[1] if len(args) > 1 else kwargs["encoder_hidden_states"]


SINGLE_STREAM = Streams(lambda a, k: (_hidden(a, k),), lambda s: s[0], lambda out: (out,))
TEXT_IMAGE = Streams(lambda a, k: (_encoder(a, k), _hidden(a, k)), tuple, tuple)
IMAGE_TEXT = Streams(lambda a, k: (_hidden(a, k), _encoder(a, k)), tuple, tuple)

# Classes of diffusers with two streams; all others here have one.
TWO_STREAMS: dict[str, Streams] = {
    "SD3Transformer2DModel": TEXT_IMAGE,
    "FluxTransformer2DModel": TEXT_IMAGE,
    "CogVideoXTransformer3DModel": IMAGE_TEXT,
    "HunyuanVideoTransformer3DModel": IMAGE_TEXT,
}
# What diffusers calls the lists of blocks, in the order in which they run.
STACKS = ("transformer_blocks", "single_transformer_blocks", "blocks", "layers")


# Two streams in the first list, which are concatenated into one before the second.
JOINED = frozenset({"ChromaTransformer2DModel"})


def streams_of(model: nn.Module) -> Streams | tuple[Streams, ...]:
    """The streams of a model of diffusers: of all its blocks, or of each."""
    if type(model).__name__ in JOINED:
        (seam,) = seams_of(model)
        return (TEXT_IMAGE,) * seam + (SINGLE_STREAM,) * (len(blocks_of(model)) - seam)
    return TWO_STREAMS.get(type(model).__name__, SINGLE_STREAM)


def seams_of(model: nn.Module) -> tuple[int, ...]:
    """The blocks before which streams are joined."""
    joined = type(model).__name__ in JOINED
    return (len(getattr(model, STACKS[0])),) if joined else ()


def blocks_of(model: nn.Module) -> tuple[nn.Module, ...]:
    """The blocks of a model of diffusers, in the order in which they run."""
    return tuple(block for name in STACKS for block in getattr(model, name, ()))
