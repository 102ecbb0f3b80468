"""(b) Cold compile of all variants, and the start of a second process, against plain torch.compile.

Every case runs twice, in processes of its own with an Inductor cache of its own: the first is cold,
the second starts from what the first left. There, first a trivial function is compiled: on a CPU
that builds the C++ precompiled header, a cost that comes once per machine and is reported apart.
Seconds are those of torch.compile and the first call, less a warm call; processor seconds, of the
process and of its compilers, are steadier on a busy machine.
"""

from __future__ import annotations

import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from denoisers import DENOISERS
from measure import arguments, record, seconds

CASES = ("plain", "blocks")


def main() -> None:
    """Measure each case `--rounds` times, in turn."""
    args = arguments(
        __doc__.split("\n")[0],
        rounds={"type": int, "default": 2},
        cases={"nargs": "+", "choices": (*CASES, "whole"), "default": CASES},
        only={"choices": (*CASES, "whole"), "default": None},
    )
    if args.only:
        print(json.dumps(first_call(args)))
        return
    taken: dict[str, list[dict[str, float]]] = {}
    for _ in range(args.rounds):
        for case in args.cases:
            for at, run in zip(("cold", "second"), in_new_processes(case), strict=True):
                taken.setdefault(f"{case}, {at}", []).append(run)
    medians = {
        case: {key: round(statistics.median(run[key] for run in runs), 2) for key in runs[0]}
        for case, runs in taken.items()
    }
    record(args, {"compile": medians, "ratios": ratios(medians)})


def ratios(medians: dict[str, dict[str, float]]) -> dict[str, float]:
    """Ours to plain, and second processes to their own cold one, in wall and processor seconds."""
    ours = [case for case in medians if not case.startswith("plain")]
    pairs = [(case, f"plain, {case.split(', ')[1]}") for case in ours]
    pairs += [(case, case.replace("second", "cold")) for case in medians if "second" in case]
    found = {}
    for above, below in pairs:
        for unit in ("model_s", "processor_s"):
            if below in medians:
                name = f"{above} / {below}, {unit}"
                found[name] = round(medians[above][unit] / medians[below][unit], 3)
    return found


def in_new_processes(case: str) -> list[dict[str, float]]:
    """One case with nothing cached, then once more."""
    with tempfile.TemporaryDirectory() as cache:
        return [new_process(case, sys.argv[1:], Path(cache)) for _ in range(2)]


def new_process(case: str, options: Sequence[str], cache: Path) -> dict[str, float]:
    """The first call of a case in a process of its own, whose Inductor cache lies in a folder."""
    done = subprocess.run(
        [sys.executable, __file__, *options, "--only", case],
        env={
            **os.environ,
            "TORCHINDUCTOR_CACHE_DIR": str(cache / "inductor"),
            "TMPDIR": str(cache),
        },
        capture_output=True,
        text=True,
        check=True,
    )
    run: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return run


def first_call(args: Any) -> dict[str, float]:
    """Seconds to compile a trivial function, then the model."""
    trivial = torch.compile(lambda x: torch.nn.functional.gelu(x @ x).sum(-1))
    with torch.no_grad():
        header = seconds(lambda: trivial(torch.ones(8, 8, device=args.device)), args.device)
        denoiser = DENOISERS[args.model](args.device, getattr(torch, args.dtype))
        chosen: dict[str, Any] = {}
        if args.only != "plain":
            fuse = "whole" if args.only == "whole" else "blocks"
            chosen = {"backend": "deltadit", "options": {"fuse": fuse, "steps": args.steps}}
        call_args, call_kwargs = denoiser.inputs(999.0)
        compiled: list[Any] = []

        def start() -> None:
            compiled.append(torch.compile(denoiser.model, dynamic=False, fullgraph=True, **chosen))
            compiled[0](*call_args, **call_kwargs)

        before = processor_seconds()
        first = seconds(start, args.device)
        worked = processor_seconds() - before
        # The same timestep again is a refresh, as the first call was.
        warm = seconds(lambda: compiled[0](*call_args, **call_kwargs), args.device)
    return {"header_s": header, "model_s": first - warm, "processor_s": worked}


def processor_seconds() -> float:
    """Of this process and of the compilers it has waited for."""
    used = map(resource.getrusage, (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(one.ru_utime + one.ru_stime for one in used)


if __name__ == "__main__":
    main()
