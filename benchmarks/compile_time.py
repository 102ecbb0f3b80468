"""(b) Cold compile of all variants against plain torch.compile of the one model.

Every case runs in a process and an Inductor cache of its own. There, first a trivial function is
compiled: on a CPU that builds the C++ precompiled header, a cost that comes once per machine and
is reported apart. Seconds are those of the first call less a warm call.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
from typing import Any

import torch
from denoisers import DENOISERS
from measure import arguments, record, seconds


def main() -> None:
    """Measure each case `--rounds` times, in turn."""
    args = arguments(
        __doc__.split("\n")[0],
        rounds={"type": int, "default": 2},
        only={"choices": ("plain", "blocks", "whole"), "default": None},
    )
    if args.only:
        print(json.dumps(cold_compile(args)))
        return
    cases = ("plain", "blocks")
    taken: dict[str, list[dict[str, float]]] = {case: [] for case in cases}
    for _ in range(args.rounds):
        for case in cases:
            taken[case].append(in_new_process(case))
    medians = {
        case: {key: round(statistics.median(run[key] for run in runs), 2) for key in runs[0]}
        for case, runs in taken.items()
    }
    model = [medians[case]["model_s"] for case in cases]
    whole = [medians[case]["model_s"] + medians[case]["header_s"] for case in cases]
    results = {
        "cold compile": medians,
        "ours/plain, header built": round(model[1] / model[0], 3),
        "ours/plain, header included": round(whole[1] / whole[0], 3),
    }
    record(args, results)


def in_new_process(case: str) -> dict[str, float]:
    """One case with nothing cached."""
    with tempfile.TemporaryDirectory() as cache:
        environment = {**os.environ, "TORCHINDUCTOR_CACHE_DIR": cache, "TMPDIR": cache}
        command = [sys.executable, *sys.argv, "--only", case]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    result: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return result


def cold_compile(args: Any) -> dict[str, float]:
    """Seconds to compile a trivial function, then the model."""
    trivial = torch.compile(lambda x: torch.nn.functional.gelu(x @ x).sum(-1))
    with torch.no_grad():
        header = seconds(lambda: trivial(torch.ones(8, 8, device=args.device)), args.device)
        denoiser = DENOISERS[args.model](args.device, getattr(torch, args.dtype))
        chosen: dict[str, Any] = {}
        if args.only != "plain":
            chosen = {"backend": "deltadit", "options": {"fuse": args.only, "steps": args.steps}}
        compiled = torch.compile(denoiser.model, dynamic=False, fullgraph=True, **chosen)
        call_args, call_kwargs = denoiser.inputs(999.0)
        first = seconds(lambda: compiled(*call_args, **call_kwargs), args.device)
        # The same timestep again is a refresh, as the first call was.
        warm = seconds(lambda: compiled(*call_args, **call_kwargs), args.device)
    return {"header_s": header, "model_s": first - warm}


if __name__ == "__main__":
    main()
