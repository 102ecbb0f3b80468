"""Speed at real size: plain, ours and the rivals, compiled and not, on random weights.

Each arm runs step by step in turn with the plain eager model, on the same weights, in one process:
ratios are medians over rounds of one run. A case is a JSON file in benchmarks/results, written
after every arm, so a run that was stopped goes on where it was.

    python benchmarks/real_size.py --cases dit-xl-256 pixart-512 pixart-1024 sd3-1024 flux-1024
    python benchmarks/real_size.py --cases try --rounds 1        only checks that it works
"""

from __future__ import annotations

import argparse
import copy
import gc
import json
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Final

import torch
from arms import ARMS, Arm, Begin, How
from measure import DEVICE, circumstances, in_turn, peak_bytes_of, seconds
from models.calls import Sizes, call_of
from models.diffusion import CONFIGS, build
from models.streams import Call, blocks_of
from torch import nn

from deltapass.bench.measuring.compiles import counting

RESULTS: Final = Path(__file__).with_name("results")
GIB: Final = 2**30
ROOM: Final = 1.3  # memory of a run over that of the weights
ACTIVATIONS: Final = 2 * GIB
# An error, over the plain output's largest value, that no compiler makes.
CACHED: Final = {"float32": 1e-3, "bfloat16": 5e-2}
LAYERS: Final = ("num_layers", "num_single_layers")


@dataclass(frozen=True, kw_only=True)
class Case:
    """A model at a size, and how long a trajectory is; two steps are a full and a cached one."""

    row: str
    title: str
    steps: int = 2
    batch: int = 2
    text: int = 0
    side: int = 4
    blocks: float = 1.0
    dtype: str = "float32"


CASES: Final = {
    "try": Case(row="dit-tiny", title="DiT width 64, 64 px", steps=4),
    "dit-xl-256": Case(row="dit-xl-256", title="DiT-XL/2, 256 px", steps=20),
    "pixart-512": Case(row="pixart-512", title="PixArt-alpha, 512 px", steps=4, text=120),
    "pixart-1024": Case(row="pixart-1024", title="PixArt-alpha, 1024 px", text=120),
    "sd3-1024": Case(row="sd3-1024", title="SD3 medium, 1024 px", text=333),
    "flux-1024": Case(row="flux-dev", title="Flux, 1024 px", batch=1, text=512, side=64),
}


def main() -> None:
    """Every arm of every case that is not measured yet."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cases", nargs="+", choices=CASES, default=["dit-xl-256"])
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=list(ARMS))
    parser.add_argument("--rounds", type=int, default=5, help="trajectories of each arm, timed")
    parser.add_argument("--steps", type=int, help="of a trajectory, in place of the case's")
    parser.add_argument("--batch", type=int, help="in place of the case's")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), help="else what fits")
    parser.add_argument("--mode", help="of torch.compile: max-autotune-no-cudagraphs")
    parser.add_argument("--device", default=DEVICE)
    parser.add_argument("--folder", type=Path, default=RESULTS, help="of the records")
    args = parser.parse_args()
    for name in args.cases:
        case = fitted(_asked(CASES[name], args), args.device, args.dtype)
        measure(name, case, [ARMS[arm] for arm in args.arms], args)


def _asked(case: Case, args: argparse.Namespace) -> Case:
    return replace(case, steps=args.steps or case.steps, batch=args.batch or case.batch)


# ---- what fits -----------------------------------------------------------------------------------


def fitted(case: Case, device: str, dtype: str | None = None) -> Case:
    """The case in the first form that memory allows: float32, bfloat16, then fewer blocks."""
    free = available(device)
    types = (dtype,) if dtype else ("float32", "bfloat16")
    forms = [replace(case, dtype=one) for one in types]
    forms += [replace(case, dtype=types[-1], blocks=share) for share in (1 / 2, 1 / 4, 1 / 8)]
    for form in forms:
        size = weight_bytes(form)
        if ROOM * size + ACTIVATIONS <= free:
            print(f"{form.title}: {size / GIB:.1f} GiB of weights in {form.dtype}")
            return form
    raise SystemExit(f"{case.title} does not fit into {free / GIB:.1f} GiB, even an eighth of it")


def weight_bytes(case: Case) -> int:
    """Of the model, without making it."""
    model = build(case.row, device="meta", **layers(case))
    size = getattr(torch, case.dtype).itemsize
    return sum(parameter.numel() for parameter in model.parameters()) * int(size)


def layers(case: Case) -> dict[str, int]:
    """Numbers of blocks, where not all of them are kept."""
    if case.blocks == 1.0:
        return {}
    given = {name: CONFIGS[case.row][name] for name in LAYERS if name in CONFIGS[case.row]}
    return {name: max(2, round(count * case.blocks)) for name, count in given.items()}


def available(device: str) -> int:
    """Bytes that are free."""
    if device.startswith("cuda"):
        return torch.cuda.mem_get_info()[0]
    lines = Path("/proc/meminfo").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("MemAvailable"))


def model_of(case: Case, device: str) -> nn.Module:
    """The model, made in its type at once: twice its weights may not fit."""
    default = torch.get_default_dtype()
    torch.set_default_dtype(getattr(torch, case.dtype))
    try:
        model: nn.Module = build(case.row, device=device, **layers(case))
    finally:
        torch.set_default_dtype(default)
    # Output layers that start at zero would hide any error.
    for parameter in model.eval().requires_grad_(False).parameters():
        if not parameter.any():
            torch.nn.init.normal_(parameter, std=0.02)
    return model


def calls_of(model: nn.Module, case: Case, device: str) -> list[Call]:
    """A trajectory's inputs: other latents at every step, so that a cached step can be told."""
    dtype = getattr(torch, case.dtype)
    sizes = Sizes(
        batch=case.batch, text=case.text, side=case.side, padding=0, whole=False,
        device=device, dtype=dtype,
    )  # fmt: skip
    call = call_of(model, sizes)
    return [call(1 - step / case.steps, seed=step) for step in range(case.steps)]


# ---- measuring -----------------------------------------------------------------------------------


@torch.no_grad()
def measure(name: str, case: Case, arms: Sequence[Arm], args: argparse.Namespace) -> Path:
    """Measure the arms that the case's file does not have yet, and write it after each."""
    about = circumstances(args)
    about.pop("options")
    form = "-".join(filter(None, (name, case.dtype, f"batch-{case.batch}", args.mode)))
    path = args.folder / f"real-size-{form}_{slug(about['hardware'])}_{about['date']}.json"
    asked = {**asdict(case), "mode": args.mode}
    content = {**about, "unit": "seconds", "name": case.title, "case": asked, "arms": {}}
    if path.exists() and (kept := json.loads(path.read_text()))["case"] == asked:
        content["arms"] = kept["arms"]
    missing = [arm for arm in arms if arm.name not in content["arms"]]
    if missing:
        model = model_of(case, args.device)
        calls = calls_of(model, case, args.device)
        content["parameters"] = sum(parameter.numel() for parameter in model.parameters())
        content["blocks"] = len(blocks_of(model))
        wanted = [model(*given, **named)[0].float() for given, named in calls]
    for arm in missing:
        content["arms"][arm.name] = one = outcome(arm, model, calls, wanted, args)
        path.write_text(json.dumps(content, indent=1) + "\n")
        print(f"{case.title} | {arm.name} | {one.get('failure') or one['share']}", flush=True)
    return path


def outcome(
    arm: Arm, model: nn.Module, calls: list[Call], wanted: list[torch.Tensor], args: Any
) -> dict[str, Any]:
    """What an arm takes and gives, or how it fails."""
    torch.compiler.reset()
    gc.collect()
    tensors = [*model.parameters(), *model.buffers()]
    # Modules of its own: rivals change them, and the plain model must not be changed meanwhile.
    own = copy.deepcopy(model, {id(tensor): tensor for tensor in tensors})
    try:
        with counting() as compiles, arm.enable(own, How(len(calls), args.mode)) as begin:
            taken = timed(begin, model, calls, wanted, args)
    except Exception as error:  # noqa: BLE001 - whatever it is, it is what the table says
        return {"failure": f"{type(error).__name__}: {str(error).strip()[:500]}"}
    counts = {name: getattr(compiles, name) for name in ("graphs", "breaks", "recompiles")}
    return {**taken, **counts, "reasons": compiles.reasons}


def timed(
    begin: Begin, model: nn.Module, calls: list[Call], wanted: list[torch.Tensor], args: Any
) -> dict[str, Any]:
    """A first trajectory, whose outputs are compared, then the rounds in turns with plain."""
    outputs: list[torch.Tensor] = []
    with peak_bytes_of(args.device) as peak:
        step = begin()
        first = [
            seconds(
                lambda at=at, given=given: outputs.append(step(at, *given)[0].float()), args.device
            )
            for at, given in enumerate(calls)
        ]
    dtype = str(next(model.parameters()).dtype).removeprefix("torch.")
    errors = [error(found, right) for found, right in zip(outputs, wanted, strict=True)]
    rounds = []
    for turn in range(args.rounds + 1):  # the first is not counted: some compile once more
        step = begin()
        pairs = [
            in_turn(
                [partial(step, at, *given), partial(model, *given[0], **given[1])],
                turn + at,
                args.device,
            )
            for at, given in enumerate(calls)
        ]
        rounds.append(pairs)
    return {
        "first_s": round(sum(first), 3),
        "peak_bytes": peak.bytes,
        **summary(rounds[1:], errors, CACHED[dtype]),
    }


def error(found: torch.Tensor, right: torch.Tensor) -> float:
    """The largest difference over the plain output's largest value."""
    return ((found - right).abs().max() / right.abs().max()).item()


def summary(
    rounds: Sequence[Sequence[Sequence[float]]], errors: Sequence[float], cached: float
) -> dict[str, Any]:
    """Times of steps and trajectories, over those of the plain eager model in the same turn.

    Args:
        rounds: Trajectories of steps of (seconds of the arm, of the plain model).
        errors: Of each step's output.
        cached: The error beyond which a step was a cached one.
    """
    by_step = list(zip(*rounds, strict=True))
    shares = [statistics.median(ours / plain for ours, plain in pairs) for pairs in by_step]
    of_kind: dict[str, list[float]] = {"full": [], "cached": []}
    for share, wrong in zip(shares, errors, strict=True):
        of_kind["cached" if wrong > cached else "full"].append(share)
    whole = [sum(o for o, _ in steps) / sum(p for _, p in steps) for steps in rounds]
    return {
        "share": {
            "trajectory": round(statistics.median(whole), 4),
            **{kind: round(statistics.median(of), 4) for kind, of in of_kind.items() if of},
        },
        "trajectory_shares": [round(share, 4) for share in whole],
        "steps_s": [round(statistics.median(o for o, _ in pairs), 5) for pairs in by_step],
        "plain_steps_s": [round(statistics.median(p for _, p in pairs), 5) for pairs in by_step],
        "errors": [float(f"{wrong:.2g}") for wrong in errors],
    }


def slug(hardware: str) -> str:
    """The machine in a file's name."""
    words = "".join(c if c.isalnum() else " " for c in hardware.lower()).split()
    return "-".join(words[:6])


if __name__ == "__main__":
    main()
