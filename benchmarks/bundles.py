"""Plan bundles against the plain model exported in the same format: bytes, errors, times.

The plain export is one segment, made and run by the same code. Trajectories are timed in turns, in
one process; times are ratios of medians. TensorRT engines are built and weighed, and not run where
there is no GPU.

    python benchmarks/bundles.py --models embedded dit --formats onnx aoti tensorrt --save FILE
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from deltapass.backends.onnx.format import write_segments
from deltapass.backends.tensorrt.build import Range, Settings, build
from denoisers import DENOISERS
from measure import arguments, follow, in_turn, median, record, seconds
from models.streams import Call as Given
from models.tiny import TINY_NAMES, make_tiny

import deltapass
from deltapass.bundles.formats import Job, SegmentProgram
from deltapass.bundles.weights_file import TensorStore
from deltapass.demo.compare import DemoSettings, example_call
from deltapass.demo.embedded import load_embedded
from deltapass.exporting.prepare import prepare
from deltapass.exporting.segment_program import Values, segment_program
from deltapass.exporting.segments import as_one_segment
from deltapass.exporting.trace import export_graph
from deltapass.options import parse_options

FORMATS = ("onnx", "aoti", "tensorrt")
Call = Callable[[float], Given]


def main() -> None:
    """Measure every model in every format, and print a table."""
    args = arguments(
        __doc__,
        without=("model", "mode"),
        models={"nargs": "+", "default": ["embedded"], "choices": (*DENOISERS, *TINY_NAMES)},
        architectures={"nargs": "+", "help": "TensorRT-RTX: such as SM89"},
        formats={"nargs": "+", "choices": FORMATS, "default": ["onnx"]},
        images={"type": int, "default": 20, "help": "batch of the embedded model"},
        rounds={"type": int, "default": 5},
        threads={"type": int, "default": 1},
    )
    torch.set_num_threads(args.threads)
    rows = []
    for name in args.models:
        for format in args.formats:
            row = {"model": name, "format": format, **measured(name, format, args)}
            record(args, row)
            rows.append(row)
    print_table(rows)


def measured(name: str, format: str, args: argparse.Namespace) -> dict[str, Any]:
    """One row of the table."""
    model, call, options = source(name, args)
    positional, named = call(1.0)
    engine = {"architectures": args.architectures} if format == "tensorrt" else {}
    written: dict[str, Any] = {"format": format, "engine": engine}
    with tempfile.TemporaryDirectory() as folder:
        ours, plain = Path(folder, "ours"), Path(folder, "plain")
        started = time.perf_counter()
        chosen = {**written, **options, "steps": args.steps}
        plan = deltapass.export(model, positional, named, ours, **chosen)
        spent = time.perf_counter() - started
        deltapass.export(model, positional, named, plain, schedule="none", **written)
        row = {
            "segments": len(plan.segments),
            "bytes": folder_bytes(ours),
            "plain_bytes": folder_bytes(plain),
            "bytes_over_plain": round(folder_bytes(ours) / folder_bytes(plain), 4),
            "weights_bytes": plan.weights["bytes"],
            "errors": (plan.verified or {})["variants"],
            "verified_by": (plan.verified or {})["by"],
            "export_seconds": round(spent, 1),
            "expected_speedup": round(plan.macs["expected_speedup"], 4),
        }
        if format == "tensorrt":
            row["whole_variant_bytes"] = whole_variants(model, call, options, args)
            if not torch.cuda.is_available():
                return row
        threads = {"threads": args.threads} if format == "onnx" else {}
        return {**row, **times((ours, plain), call, threads, args)}


def source(name: str, args: argparse.Namespace) -> tuple[torch.nn.Module, Call, dict[str, Any]]:
    """A model, a call of it at a noise level, and options of the export."""
    if name == "embedded":
        pipeline = load_embedded()
        call = example_call(pipeline, DemoSettings(count=args.images, options={}))
        return pipeline.transformer, lambda _: call, {}
    if name in DENOISERS:
        denoiser = DENOISERS[name](args.device, getattr(torch, args.dtype))
        return denoiser.model, lambda noise: denoiser.inputs(1000 * noise - 1), {}
    tiny = make_tiny(name)
    return tiny.model, tiny.call, {"cached_blocks": 3}


def folder_bytes(folder: Path) -> int:
    """Bytes of all files, plan.json among them."""
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


def times(
    bundles: tuple[Path, Path], call: Call, options: dict[str, Any], args: argparse.Namespace
) -> dict[str, Any]:
    """Load times, and trajectories of both in turns."""
    loading, models = {}, []
    for name, folder in zip(("load_seconds", "plain_load_seconds"), bundles, strict=True):
        load = partial(deltapass.load, folder, **options)
        loading[name] = median(seconds(load) for _ in range(3))
        models.append(load())
    calls = [call(1 - step / args.steps) for step in range(args.steps)]
    runs = [partial(follow, model, calls) for model in models]
    in_turn(runs, 0)  # warm up
    taken = [in_turn(runs, turn, args.device) for turn in range(args.rounds)]
    ours, plain = zip(*taken, strict=True)
    return {
        **loading,
        "trajectory_seconds": [round(s, 5) for s in ours],
        "plain_trajectory_seconds": [round(s, 5) for s in plain],
        "speedup": round(median(plain, 9) / median(ours, 9), 4),
    }


# ---- TensorRT: what whole variants would take ---------------------------------------------------


def whole_variants(
    model: torch.nn.Module, call: Call, options: dict[str, Any], args: argparse.Namespace
) -> int:
    """Bytes of the engines if every variant of the table were one engine."""
    exported = export_graph(model, *call(1.0))
    prepared = prepare(exported, parse_options({"steps": args.steps, **options}))
    values = Values(
        weights=exported.weights,
        tensors=exported.tensors,
        example=prepared.chains.example,
        shapes={},
    )
    total = 0
    for name in sorted({row.variant for row in prepared.rows}):
        segment = segment_program(as_one_segment(prepared.chains.programs[name]), values)
        with tempfile.TemporaryDirectory() as folder:
            total += engine_bytes(segment, Path(folder), args)
    return total


def engine_bytes(segment: SegmentProgram, folder: Path, args: argparse.Namespace) -> int:
    """Bytes of the engine of one segment."""
    job = Job(segments=[segment], folder=folder, store=TensorStore(), dimensions={}, options={})
    written = write_segments(job, folder, None)
    pairs = zip(segment.inputs, segment.example, strict=True)
    ranges = {name: Range.fixed(tuple(value.shape)) for name, value in pairs}
    told = None if args.architectures is None else tuple(args.architectures)
    source = folder / written.segments[segment.name].file
    return len(build(source, ranges, Settings(architectures=told)).engine)


def print_table(rows: Sequence[dict[str, Any]]) -> None:
    """The rows as a table for the documentation."""
    heads = "model|format|segments|bytes / plain|largest error|speed-up|of expected|load s"
    print(f"| {heads.replace('|', ' | ')} |")
    print("|---" * (heads.count("|") + 1) + "|")
    for row in rows:
        speedup = row.get("speedup")
        shown = ("-", "-")
        if speedup:
            shown = (f"{speedup:.3f}x", f"{speedup / row['expected_speedup']:.3f}")
        load = f"{row['load_seconds']:.2f}" if "load_seconds" in row else "-"
        cells = (
            row["model"],
            row["format"],
            str(row["segments"]),
            f"{row['bytes_over_plain']:.4f}",
            f"{max(row['errors'].values()):.1e}",
            *shown,
            load,
        )
        print(f"| {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
