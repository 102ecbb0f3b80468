"""What torch.compile did meanwhile: graphs, breaks, recompiles. And its settings, kept."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Final, final

import torch
from torch._dynamo.callback import callback_handler
from torch._dynamo.utils import counters

MOST_COMPILES: Final = 256


@final
@dataclass(slots=True)
class Compiles:
    """Exact numbers, of everything that was compiled meanwhile.

    Attributes:
        graphs: That Dynamo handed to a backend.
        breaks: Places where it broke one off.
        recompiles: Times a function was compiled once more.
        reasons: Of the breaks, the first line of each.
    """

    graphs: int = 0
    breaks: int = 0
    recompiles: int = 0
    reasons: list[str] = field(default_factory=list)


@contextmanager
def counting() -> Iterator[Compiles]:
    """Forgets what was compiled before, and counts; the numbers are there when it ends."""
    torch.compiler.reset()
    found = Compiles()
    graphs, breaks = _graphs(), dict(counters["graph_break"])

    def started(compiling: Any) -> None:
        # "FRAME/TIME": a function that is compiled for the first time is at time 0.
        found.recompiles += compiling.compile_id.rpartition("/")[2] != "0"

    callback_handler.register_start_callback(started)
    try:
        yield found
    finally:
        if started in callback_handler.start_callbacks:  # a reset in between forgets it
            callback_handler.remove_start_callback(started)
        found.graphs = _graphs() - graphs
        new = {why: n - breaks.get(why, 0) for why, n in counters["graph_break"].items()}
        found.breaks = sum(new.values())
        found.reasons = [why.partition("\n")[0] for why, times in new.items() if times]


def _graphs() -> int:
    return int(counters["stats"]["unique_graphs"])


@contextmanager
def kept_compile_settings() -> Iterator[None]:
    """Settings of torch.compile are afterwards what they were: libraries change them for good."""
    import torch._inductor.config

    configs = (torch._dynamo.config, torch._inductor.config)
    before = [config.get_config_copy() for config in configs]
    try:
        yield
    finally:
        for config, saved in zip(configs, before, strict=True):
            now = config.get_config_copy()
            for name, value in saved.items():
                if now[name] != value:
                    setattr(config, name, value)


@contextmanager
def many_compiles() -> Iterator[None]:
    """Within, one class may be compiled in as many ways as methods ask for.

    Beyond its limit torch would run a model uncompiled, with a line in a log.
    """
    with torch._dynamo.config.patch(recompile_limit=MOST_COMPILES):
        yield
