"""What a fitted or searched schedule was made for, and how a use of it differs."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, final

from deltapass.errors import ScheduleError
from deltapass.schedule.checks import check_count, unknown_name

SHOWN: Final = 3  # settings that are named in one warning
Setting = str | int | float | bool | None | tuple[Any, ...]


@final
@dataclass(frozen=True, kw_only=True)
class Sampler:
    """What besides the model and the schedule decides a trajectory; None where not known.

    Attributes:
        scheduler: The class of the scheduler.
        settings: Its settings by name, as JSON holds them, sorted; lists as tuples.
        guidance: Strength of classifier-free guidance.
    """

    scheduler: str | None = None
    settings: tuple[tuple[str, Setting], ...] = ()
    guidance: float | None = None


UNKNOWN: Final = Sampler()


@final
@dataclass(frozen=True, kw_only=True)
class MadeFor:
    """What a schedule was made for.

    Attributes:
        blocks: Blocks of the model's stack.
        structure: Equal for models whose weights have the same shapes (`shapes_key`).
        steps: Steps of a trajectory.
        sampler: What sampled them.
    """

    blocks: int
    structure: str
    steps: int
    sampler: Sampler = UNKNOWN

    def check_blocks(self, blocks: int) -> None:
        """Raise ScheduleError for a model of another number of blocks."""
        if blocks != self.blocks:
            raise ScheduleError(
                f"the schedule was made for a model of {self.blocks} blocks, this one has {blocks}",
                "Calibrate a schedule for this model with deltapass.calibrate",
            )

    def other_model(self, structure: str) -> str:
        """How another model differs; empty for the same one, and where nothing is known of it."""
        if structure and self.structure and structure != self.structure:
            return "the shapes of the model's weights differ"
        return ""

    def other_sampler(self, sampler: Sampler) -> str:
        """How a pipeline's sampler differs, in what is known of both; empty for the same one."""
        ours = self.sampler
        parts = []
        if ours.scheduler and sampler.scheduler and ours.scheduler != sampler.scheduler:
            parts.append(_difference("scheduler", ours.scheduler, sampler.scheduler))
        elif ours.scheduler and sampler.scheduler:
            parts.extend(_other_settings(dict(ours.settings), dict(sampler.settings)))
        known = ours.guidance is not None and sampler.guidance is not None
        if known and ours.guidance != sampler.guidance:
            parts.append(_difference("guidance", ours.guidance, sampler.guidance))
        return "; ".join(parts)


def _difference(name: str, made_for: object, found: object) -> str:
    return f"{name} is {_shown(found)}, it was made for {_shown(made_for)}"


def _shown(value: object) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def _other_settings(made_for: Mapping[str, Any], found: Mapping[str, Any]) -> Iterator[str]:
    """Settings that both have and that differ: another release may add some or drop some."""
    names = [name for name in made_for if name in found and made_for[name] != found[name]]
    yield from (_difference(name, made_for[name], found[name]) for name in names[:SHOWN])
    if len(names) > SHOWN:
        yield f"and {len(names) - SHOWN} settings more"


def sampler_of(scheduler: Any, guidance: float | None = None) -> Sampler:
    """What is known of a scheduler of diffusers.

    Settings with `_` say where it was loaded from; what JSON cannot hold is left out.
    """
    config = dict(getattr(scheduler, "config", None) or {})
    own = {name: _frozen(value) for name, value in config.items() if not name.startswith("_")}
    settings = tuple((name, own[name]) for name in sorted(own) if own[name] is not NotImplemented)
    return Sampler(scheduler=type(scheduler).__name__, settings=settings, guidance=guidance)


def _frozen(value: Any) -> Any:
    """A setting as JSON holds it, with tuples for lists; NotImplemented where it cannot."""
    if isinstance(value, float) and not math.isfinite(value):
        return NotImplemented
    if isinstance(value, list | tuple):
        parts = tuple(_frozen(part) for part in value)
        return NotImplemented if any(part is NotImplemented for part in parts) else parts
    return value if isinstance(value, str | bool | int | float | None) else NotImplemented


def shapes_key(shapes: Iterable[Sequence[int]]) -> str:
    """A short text, the same in every process, for the shapes of a model's weights in any order."""
    text = repr(sorted(tuple(map(int, shape)) for shape in shapes))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


# ---- as plain data ----------------------------------------------------------------------------

KEYS: Final = ("blocks", "structure", "steps", "scheduler", "settings", "guidance")


def made_for_content(made_for: MadeFor) -> dict[str, Any]:
    """As plain data that `made_for_from` reads back equal; what is not known is left out."""
    sampler = made_for.sampler
    content = {
        "blocks": made_for.blocks,
        "structure": made_for.structure,
        "steps": made_for.steps,
        "scheduler": sampler.scheduler,
        "settings": {name: _thawed(value) for name, value in sampler.settings} or None,
        "guidance": sampler.guidance,
    }
    return {name: value for name, value in content.items() if value is not None}


def _thawed(value: Any) -> Any:
    return [_thawed(part) for part in value] if isinstance(value, tuple) else value


def made_for_from(content: object) -> MadeFor:
    """The record that plain data describes.

    Raises:
        ScheduleError: If a key is missing, unknown, or has a value without meaning.
    """
    if not isinstance(content, Mapping):
        raise ScheduleError(f"made_for is {content!r}", f"Give an object with {', '.join(KEYS)}")
    for name in content:
        if name not in KEYS:
            raise unknown_name("key of made_for", name, KEYS)
    for name in ("blocks", "steps"):
        check_count(name, content.get(name), 1)
    _check("structure", content.get("structure"), str, "text")
    _check("scheduler", content.get("scheduler"), str | None, "the name of a class")
    _check("guidance", content.get("guidance"), int | float | None, "a number")
    settings = content.get("settings", {})
    _check("settings", settings, Mapping, "an object")
    own = tuple((name, _frozen(settings[name])) for name in sorted(settings))
    sampler = Sampler(
        scheduler=content.get("scheduler"), settings=own, guidance=content.get("guidance")
    )
    return MadeFor(
        blocks=content["blocks"],
        structure=content["structure"],
        steps=content["steps"],
        sampler=sampler,
    )


def _check(name: str, value: object, kind: Any, allowed: str) -> None:
    if not isinstance(value, kind) or isinstance(value, bool):
        raise ScheduleError(f"made_for: {name} is {value!r}", f"It must be {allowed}")
