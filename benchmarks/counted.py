"""Exact numbers of what deltapass makes of some models: equal on every machine, and a gate.

They are compared with expected_counts.json, by `make test` and `make bench` alike. Any difference
fails, also one for the better: then the file is to say so, by

    python benchmarks/counted.py --update
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

import torch
from measure import trajectory_timesteps
from models.calls import Sizes, call_of
from models.diffusion import build
from models.tiny import make_tiny

import deltapass
from deltapass.backend import deltadit
from deltapass.bench.measuring.compiles import counting
from deltapass.exporting.prepare import prepare
from deltapass.exporting.trace import export_graph
from deltapass.options import parse_options

Counts = dict[str, int]
EXPECTED: Final = Path(__file__).with_name("expected_counts.json")
UPDATE: Final = "python benchmarks/counted.py --update"
SLOW: Final = frozenset({"plan of dit-xl-256"})  # more than ten seconds on two cores
STEPS: Final = 20
TINY_STEPS: Final = 8
# Of four or five blocks, so that some stay: what is cached, and what is not.
SOME_BLOCKS: Final = MappingProxyType({"cached_blocks": 3, "lowering": "eager"})


def real_size(name: str, **changes: Any) -> Counts:
    """What is planned for a model of real size, without its weights."""
    model = build(name, device="meta", **changes).eval().requires_grad_(False)
    args, kwargs = call_of(model, Sizes(whole=False, device="meta"))(1.0)
    report = deltapass.explain(model, *args, options={"steps": STEPS}, **kwargs)
    assert report.refusal is None, report.refusal
    runs = {f"runs of {variant.name}": variant.runs for variant in report.variants}
    blocks = {f"blocks of {variant.name}": variant.blocks for variant in report.variants}
    return {
        "bodies": len(report.bodies),
        **runs,
        **blocks,
        "buffer bytes": report.buffer_bytes,
        "macs of a plain trajectory": round(report.plain_macs.full),
        "macs of a trajectory": round(report.trajectory_macs.full),
    }


@torch.no_grad()
def trajectories(name: str) -> Counts:
    """What is compiled for a tiny model, and what two trajectories of it run."""
    tiny, made = make_tiny(name), []
    options = {**SOME_BLOCKS, "steps": TINY_STEPS}

    def backend(gm: torch.fx.GraphModule, inputs: Any) -> Any:
        made.append(deltadit(gm, inputs, options=options))
        return made[-1]

    with counting() as compiles, deltapass.session(steps=TINY_STEPS) as session:
        model = torch.compile(tiny.model, backend=backend, fullgraph=True)
        held = 0
        for trajectory in range(2):
            for step, timestep in enumerate(trajectory_timesteps(TINY_STEPS)):
                args, kwargs = tiny.call(timestep / 1000, seed=trajectory)
                session.step(step)
                model(*args, **kwargs)
                held = max(held, session.nbytes)
            session.restart()
        report = session.report()
    (selector,) = made
    blocks = len(tiny.blocks)
    skipped = [entry.realised for entry in report.entries if entry.realised is not None]
    return {
        "graphs": compiles.graphs,
        "breaks": compiles.breaks,
        "recompiles": compiles.recompiles,
        "bodies compiled": selector.variants.bodies.count,
        "refreshes": report.refreshes,
        "cached steps": report.cached,
        "forced refreshes": report.forced,
        "blocks run": blocks * report.calls - sum(len(span) for span in skipped),
        "bytes held": held,
    }


def bundle(name: str) -> Counts:
    """What a plan bundle of a tiny model is made of."""
    tiny = make_tiny(name)
    args, kwargs = tiny.call(1.0)
    options = parse_options({"cached_blocks": 3, "steps": TINY_STEPS})
    made = prepare(export_graph(tiny.model, args, kwargs), options)
    return {
        "segments": len(made.chains.segments),
        "variants": len(made.chains.variants),
        "bytes of weights": sum(weight.nbytes for weight in made.weights.values()),
    }


SUBJECTS: Final[Mapping[str, Callable[[], Counts]]] = MappingProxyType(
    {
        "plan of dit-xl-256": partial(real_size, "dit-xl-256"),
        "plan of 8 blocks of dit-xl-256": partial(real_size, "dit-xl-256", num_layers=8),
        **{f"run of tiny {name}": partial(trajectories, name) for name in ("dit", "flux")},
        "bundle of tiny dit": partial(bundle, "dit"),
    }
)


# ---- the gate ------------------------------------------------------------------------------------


class CountsDifferError(AssertionError):
    """Counts are not what the expected file says; its text shows both, and how to update it."""

    def __init__(self, subject: str, found: Counts, expected: Counts) -> None:
        names = dict.fromkeys((*expected, *found))
        lines = [
            f"  {name}: expected {expected.get(name)}, found {found.get(name)}"
            for name in names
            if expected.get(name) != found.get(name)
        ]
        text = "\n".join(lines)
        super().__init__(f"{subject}:\n{text}\nIf that is meant to be, run: {UPDATE}")


def check(subject: str, found: Counts, file: Path = EXPECTED) -> None:
    """Compare with the expected file.

    Raises:
        CountsDifferError: If anything differs, for worse or better.
    """
    expected = json.loads(file.read_text()).get(subject, {}) if file.exists() else {}
    if found != expected:
        raise CountsDifferError(subject, found, expected)


def update(file: Path = EXPECTED) -> None:
    """Write the expected file anew."""
    counts = {subject: count() for subject, count in SUBJECTS.items()}
    file.write_text(json.dumps(counts, indent=1) + "\n")


def main() -> None:
    """Check all, or write the file anew with --update."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--update", action="store_true", help=f"write {EXPECTED.name} anew")
    if parser.parse_args().update:
        update()
        return
    for subject, count in SUBJECTS.items():
        check(subject, count())
        print(f"{subject}: as expected")


if __name__ == "__main__":
    main()
