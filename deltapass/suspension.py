"""Setting the deltas of a preempted request aside, and bringing them back unchanged."""

from __future__ import annotations

import contextlib
import pickle
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, final

import torch

from deltapass.errors import StateError
from deltapass.state import BranchState, History

Deltas = list[tuple[torch.Tensor, ...]]
# What torch.load raises for files that are gone, cut short, altered, or something else altogether.
UNREADABLE: Final = (
    *(OSError, RuntimeError, EOFError, pickle.UnpicklingError),
    *(ValueError, TypeError, LookupError, AttributeError),
)


@final
@dataclass(frozen=True, slots=True)
class Suspended:
    """Deltas set aside: whose they are, where each belongs, and the file they are in, if any.

    `kept` holds them in host memory, or is empty where they are in the file.
    """

    histories: tuple[History, ...]
    devices: tuple[tuple[torch.device, ...], ...]
    kept: tuple[Deltas, ...]
    path: Path | None
    token: str


def set_aside(states: Sequence[BranchState], path: Path | None) -> Suspended:
    """Take the deltas out of the states, into host memory or a new file.

    Raises:
        StateError: If the file exists already, or cannot be written; the states are untouched.
    """
    histories = tuple(history for state in states for history in state.histories.values())
    devices = tuple(tuple(d[0].device for d in history.deltas) for history in histories)
    host = tuple(
        [tuple(delta.to("cpu") for delta in deltas) for deltas in history.deltas]
        for history in histories
    )
    token = uuid.uuid4().hex
    if path is not None:
        _write({"token": token, "deltas": list(host)}, path)
    for history in histories:
        history.deltas = []
    return Suspended(histories, devices, () if path is not None else host, path, token)


def bring_back(suspended: Suspended) -> None:
    """Put the deltas back where they were, on the devices they came from; removes the file.

    Raises:
        StateError: If the file is gone or cannot be read.
    """
    host = suspended.kept if suspended.path is None else _read(suspended.path, suspended.token)
    for history, devices, deltas in zip(suspended.histories, suspended.devices, host, strict=True):
        pairs = zip(deltas, devices, strict=True)
        history.deltas = [tuple(d.to(device) for d in some) for some, device in pairs]
    throw_away(suspended)


def throw_away(suspended: Suspended | None) -> None:
    """Let go of what was set aside, and of its file."""
    if suspended is not None and suspended.path is not None:
        with contextlib.suppress(OSError):
            suspended.path.unlink()


def _write(content: dict[str, Any], path: Path) -> None:
    try:
        with path.open("xb") as file:
            torch.save(content, file)
    except FileExistsError as error:
        raise StateError(f"{path} exists already", "Name a new file") from error
    except (OSError, RuntimeError) as error:
        with contextlib.suppress(OSError):
            path.unlink()  # nothing half-written stays behind
        fact = f"cannot set deltas aside in {path}: {error}"
        raise StateError(fact, "Name a new file where there is room") from error


def _read(path: Path, token: str) -> list[Deltas]:
    try:
        content: Any = torch.load(path, weights_only=True)
        if content["token"] != token:
            raise ValueError("it was written for another request")
        read: list[Deltas] = content["deltas"]
    except UNREADABLE as error:
        first = str(error).split("\n")[0].rstrip(".")
        fact = f"cannot read the deltas set aside in {path}: {type(error).__name__}: {first}"
        raise StateError(fact, "Call session.free() and go on: the next step refreshes") from error
    return read
