"""What is compared, as a suite: plain steps, and schedules by name or file."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

from deltapass.bench.methods.caching import SCHEDULES
from deltapass.bench.suite import MethodSpec, Suite
from deltapass.demo.embedded import ASSETS

TUNED: Final = "tuned"  # all schedules that a model is shipped with
NAMES: Final = ("paper", "linear", "quality", "balanced", "fast", TUNED)
# By the names that the tables use.
NAMED: Final[Mapping[str, MethodSpec]] = MappingProxyType(
    {
        "paper": MethodSpec(name="delta-dit", label="paper"),
        "linear": MethodSpec(name="delta-dit", label="linear", settings={"predictor": "linear"}),
    }
)
MEASURES: Final = ("psnr", "psnr_fine", "right", "drawing", "kid")


def suite_of(args: Any) -> Suite:
    """The suite of a command line; the full plain run first, and no number of steps twice."""
    fewer = sorted({*args.plain} - {args.steps}, reverse=True)
    ours = [spec for name in args.methods for spec in specs(name, ASSETS / args.model)]
    return Suite(
        name="equal-time",
        title="Quality at equal measured time",
        question="Is caching better than fewer steps that take no less time?",
        models=(args.model,),
        methods=(
            MethodSpec(name="plain"),
            *(MethodSpec(name="plain", steps=steps) for steps in fewer),
            *ours,
        ),
        steps=args.steps,
        images=args.images,
        measures=MEASURES,
        fine_steps=args.fine,
        timed=args.timed,
        rounds=args.rounds,
    )


def specs(name: str, folder: Path) -> Iterator[MethodSpec]:
    """The methods that a name or the path of a schedule's file stands for.

    Args:
        name: A key of NAMED, a method of the suites, a path, or TUNED.
        folder: The model's.
    """
    if name == TUNED:
        for file in sorted((folder / SCHEDULES).glob("*.json")):
            yield MethodSpec(name=str(file), label=file.stem)
    else:
        yield NAMED.get(name, MethodSpec(name=name, label=Path(name).stem))
