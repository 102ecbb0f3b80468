"""What is compared: plain steps, and schedules by name or file."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

from deltapass.bench.running.drawing import code_digest
from deltapass.options import parse_options

SCHEDULES: Final = "schedules"  # folder of a model's tuned schedules, beside its weights

# Options of the backend by the names that the tables use.
NAMED: Final[Mapping[str, Mapping[str, Any]]] = MappingProxyType(
    {
        "paper": {"schedule": "delta-dit"},
        "linear": {"schedule": "delta-dit", "predictor": "linear"},
    }
)


@dataclass(frozen=True, slots=True)
class Method:
    """One way to sample: `steps` steps, under a schedule, or plainly (None)."""

    name: str
    steps: int
    schedule: Any = None

    @property
    def plain(self) -> bool:
        """Whether nothing is cached."""
        return self.schedule is None

    def key(self) -> str:
        """What its samples depend on besides the model, as a name of a folder."""
        if self.plain:
            return f"plain-{self.steps}"
        # Written out whole: a preset or a file may change, and so may the code that follows it.
        says = f"{self.schedule!r} {self.steps} {code_digest()}"
        return f"{self.name}-{hashlib.sha256(says.encode()).hexdigest()[:12]}"


def plain(steps: int, name: str = "") -> Method:
    """So many steps with nothing cached."""
    return Method(name or f"plain, {steps} steps", steps)


def cached(name: str, steps: int, folder: Path) -> tuple[Method, ...]:
    """The methods that a name or the path of a schedule's file stands for.

    Args:
        name: A key of NAMED, a path, or "tuned" for all schedules that a model is shipped with.
        steps: Steps of the trajectories.
        folder: The model's.

    Raises:
        OptionError, ScheduleError: As the option of that name.
    """
    if name == "tuned":
        files = sorted((folder / SCHEDULES).glob("*.json"))
        return tuple(method for file in files for method in cached(str(file), steps, folder))
    options = NAMED.get(name, {"schedule": name})
    schedule = parse_options({**options, "steps": steps}).schedule
    return (Method(name if name in NAMED else Path(name).stem, steps, schedule),)


def methods(
    names: Iterable[str], plain_steps: Iterable[int], steps: int, folder: Path
) -> tuple[Method, ...]:
    """All of them, the full plain run first."""
    fewer = (plain(each) for each in sorted(set(plain_steps) - {steps}, reverse=True))
    ours = (method for name in names for method in cached(name, steps, folder))
    return (plain(steps), *fewer, *ours)
