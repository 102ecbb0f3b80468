"""Thresholds of rivals that decide by themselves which steps to cache: how many they cache.

For the suite `rivals`, on seeds that no suite judges. For every rival and model a share of cached
steps is counted at some thresholds, on one batch, and the threshold is named that leaves both
models nearest to every second step. What was counted is kept in --output: the same command goes on.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

import torch
from torch import nn

from deltapass.bench.environment import Environment, facts, read_environment
from deltapass.bench.files import read_json, write_whole
from deltapass.bench.methods.method import Method
from deltapass.bench.sampling import EAGER, Sampler
from deltapass.bench.subjects import EMBEDDED, embedded_subject

WANTED: Final = 0.5  # of all steps are cached
GRID: Final = (0.02, 0.03, 0.04, 0.05, 0.06, 0.08, 0.1, 0.12, 0.15, 0.2, 0.25, 0.3)
GUIDANCE: Final = 2.0  # of the suites
# The setting of each, and those that stand beside it in the suite.
RIVALS: Final[Mapping[str, tuple[str, Mapping[str, Any]]]] = {
    "cache-dit-dynamic": ("residual_diff_threshold", {"max_warmup_steps": 3}),
    "cache-dit-taylorseer": ("residual_diff_threshold", {"max_warmup_steps": 3}),
    "first-block-cache": ("threshold", {}),
    "mag-cache": ("threshold", {}),
}
Shares = dict[str, float]  # "rival model threshold" -> share of cached steps


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--env", type=Path, help="environment file (TOML)")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--images", type=int, default=25, help="of the batch: as suites draw them")
    parser.add_argument("--first-seed", type=int, default=900_000)
    parser.add_argument("--output", type=Path, required=True, help="JSON: what was counted")
    args = parser.parse_args()
    environment = read_environment(args.env, batch=args.images)
    if environment.threads is not None:
        torch.set_num_threads(environment.threads)
    held = Held(args.output, environment, args)
    for rival in RIVALS:
        best = chosen(lambda model, at, rival=rival: held.share(rival, model, at))
        found = ", ".join(f"{m} {held.share(rival, m, best):.0%}" for m in EMBEDDED)
        print(f"{rival}: {RIVALS[rival][0]} = {best:g} ({found} of the steps cached)", flush=True)


# ---- which ---------------------------------------------------------------------------------------


def chosen(share: Callable[[str, float], float]) -> float:
    """The threshold of GRID at which the model that is farthest from WANTED is nearest to it.

    The share grows with the threshold, so only those between the crossings of the models matter.
    """
    places = [_crossing(lambda at, model=model: share(model, at)) for model in EMBEDDED]
    between = GRID[max(0, min(places) - 1) : max(places) + 1]
    return min(between, key=lambda at: max(abs(share(m, at) - WANTED) for m in EMBEDDED))


def _crossing(share: Callable[[float], float]) -> int:
    """The first place of GRID with at least WANTED; the last one if there is none."""
    low, high = 0, len(GRID) - 1
    while low < high:
        middle = (low + high) // 2
        if share(GRID[middle]) < WANTED:
            low = middle + 1
        else:
            high = middle
    return low


# ---- how many ------------------------------------------------------------------------------------


class Held:
    """Shares that were counted, in a file that says what they depend on."""

    def __init__(self, path: Path, environment: Environment, args: argparse.Namespace) -> None:
        self._path, self._environment, self._args = path, environment, args
        self._of = {
            "where": facts(environment),
            "steps": args.steps,
            "seeds": [args.first_seed, args.first_seed + args.images - 1],
            "guidance": GUIDANCE,
        }
        before = read_json(path) or {}
        self._shares: Shares = before.get("shares", {}) if before.get("of") == self._of else {}
        self._samplers: dict[str, Sampler] = {}

    def share(self, rival: str, model: str, threshold: float) -> float:
        """Counted now, unless it was before."""
        key = f"{rival} {model} {threshold:g}"
        if key not in self._shares:
            if model not in self._samplers:
                subject = embedded_subject(model, self._environment, GUIDANCE)
                self._samplers[model] = Sampler(subject, EAGER)
            setting, beside = RIVALS[rival]
            method = Method(
                name=key,
                label=key,
                kind="rival",
                steps=self._args.steps,
                rival=rival,
                settings={setting: threshold, **beside, "compiled": False},
            )
            seeds = range(self._args.first_seed, self._args.first_seed + self._args.images)
            self._shares[key] = cached_share(self._samplers[model], method, seeds)
            print(f"  {key}: {self._shares[key]:.0%}", flush=True)
            content = {"of": self._of, "shares": self._shares}
            write_whole(self._path, json.dumps(content, indent=1) + "\n")
        return self._shares[key]


def cached_share(sampler: Sampler, method: Method, seeds: range) -> float:
    """The share of steps in which the last block was not run, on one batch."""
    runs = 0

    def ran(*_: Any) -> None:
        nonlocal runs
        runs += 1

    with sampler.using(method) as pipeline:
        last = pipeline.transformer.model.transformer_blocks[-1]
        layer = next(each for each in last.modules() if isinstance(each, nn.Linear))
        handle = layer.register_forward_hook(ran)
        try:
            sampler.call(pipeline, method, seeds)
        finally:
            handle.remove()
    sampler.close()
    return round(1 - runs / method.steps, 4)


if __name__ == "__main__":
    main()
