"""What half precision costs: deltas held in the type of their streams, or in float32.

For float16 and bfloat16, every predictor and both ways of holding deltas, of every second step:

noise   distance of a prediction from the same one in float64, from the same values, over what
        rounding it once to its type costs at least: 1.0 is the type itself
error   its distance from what the blocks gave, over the length of the span's delta
PSNR    in dB, of images against those of the same schedule in float32 (embedded models alone);
        "plain" is the model without deltapass in both types

    python benchmarks/half_precision.py --save benchmarks/results/half-precision_CPU_DATE.json
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, Final
from unittest.mock import patch

import torch
from measure import arguments, circumstances
from models.streams import SINGLE_STREAM, Streams
from models.tiny import make_tiny
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

import deltapass
from deltapass.bench.metrics.fidelity import psnr
from deltapass.compiler.added_bodies import delta_body, predict_body
from deltapass.demo.embedded import generators, load_embedded
from deltapass.graph.program import TensorSpec
from deltapass.schedule.predictors import PREDICTORS, Predictor
from deltapass.selector.weighing import absorb
from deltapass.sessions.deltas import History

TYPES: Final = {"float16": torch.float16, "bfloat16": torch.bfloat16}
TINY: Final = ("dit", "pixart", "sd3", "flux")
EMBEDDED: Final = ("garments", "nouns")
HELD: Final = ("stream", "float32")
EVERY: Final = 2  # a refresh
Ends = tuple[Tensor, Tensor]  # what enters and leaves a span, of one stream
Row = dict[str, Any]


def main() -> None:
    """Measure, print the table, write the record."""
    args = arguments(
        __doc__,
        without=("model", "mode", "dtype"),
        images={"type": int, "default": 8},
        predictors={"nargs": "*", "choices": PREDICTORS, "default": list(PREDICTORS)},
        models={"nargs": "*", "choices": TINY + EMBEDDED, "default": TINY + EMBEDDED},
    )
    rows: list[Row] = []
    tiny, trained = ([m for m in some if m in args.models] for some in (TINY, EMBEDDED))
    for name, dtype, held in itertools.product(tiny, TYPES, HELD):
        ends = tiny_ends(name, TYPES[dtype], args.steps)
        rows += predictions({"model": name, "type": dtype, "held": held}, ends, args.predictors)
    for name, dtype in itertools.product(trained, TYPES):
        rows += embedded(name, dtype, args)
    Console().print(table(rows))
    if args.save:
        noted = {**circumstances(args), "threads": torch.get_num_threads(), "rows": rows}
        args.save.write_text(json.dumps(noted, indent=1) + "\n")


# ---- what streams hold along a trajectory --------------------------------------------------------


@contextmanager
def watched(
    blocks: Sequence[nn.Module], streams: Streams | Sequence[Streams]
) -> Iterator[list[list[Ends]]]:
    """Of every call of the model: what enters and leaves the last three quarters of its blocks."""
    first = len(blocks) // 4
    streams = [streams] * len(blocks) if isinstance(streams, Streams) else streams
    entered: list[tuple[Tensor, ...]] = []
    calls: list[list[Ends]] = []

    def enters(_: nn.Module, args: Any, kwargs: Any) -> None:
        entered.append(tuple(value.clone() for value in streams[first].take(args, kwargs)))

    def leaves(_: nn.Module, _args: Any, out: Any) -> None:
        left = streams[-1].unpack(out)
        pairs = zip(entered[-1], left, strict=True)
        calls.append([(given, gone.clone()) for given, gone in pairs if gone is not None])

    before = blocks[first].register_forward_pre_hook(enters, with_kwargs=True)
    after = blocks[-1].register_forward_hook(leaves)
    yield calls
    before.remove()
    after.remove()


@torch.no_grad()
def tiny_ends(name: str, dtype: torch.dtype, steps: int) -> list[list[Ends]]:
    """Of a tiny model of random weights, whose sample stays while the timestep falls."""
    tiny = make_tiny(name)
    model = tiny.model.to(dtype)
    streams = (
        tiny.streams if isinstance(tiny.streams, tuple) else (tiny.streams,) * len(tiny.blocks)
    )
    with watched(tiny.blocks, streams) as calls:
        for step in range(steps):
            args, kwargs = tiny.call(1 - step / steps)
            model(
                *(as_type(value, dtype) for value in args),
                **{key: as_type(value, dtype) for key, value in kwargs.items()},
            )
    return calls


def as_type(value: Any, dtype: torch.dtype) -> Any:
    """Samples and texts in a type; timesteps as they are."""
    floating = torch.is_tensor(value) and value.is_floating_point() and value.ndim > 1
    return value.to(dtype) if floating else value


# ---- predictions ---------------------------------------------------------------------------------


def predictions(about: Row, calls: Sequence[list[Ends]], names: Sequence[str]) -> list[Row]:
    """Noise and error of every predictor over a trajectory, as roots of mean squares."""
    rows = []
    for name in names:
        noise, floor, error, size = [], [], [], []
        for stream in range(len(calls[0])):
            for made, exact, live_in, live_out in walked(
                calls, stream, about["held"], PREDICTORS[name]
            ):
                noise.append(made - exact)
                floor.append(unit(exact, TYPES[about["type"]]) / 12**0.5)
                error.append(made - live_out)
                size.append(live_out - live_in)
        rows.append(
            {
                **about,
                "predictor": name,
                "noise": round(length(noise) / length(floor), 3),
                "error": round(length(error) / length(size), 4),
            }
        )
    return rows


def walked(
    calls: Sequence[list[Ends]], stream: int, held: str, predictor: Predictor
) -> Iterator[tuple[Tensor, ...]]:
    """(predicted, the same in float64, live-in, live-out) of every cached step, in float64."""
    steps, kept, exact = len(calls), History(), History()
    for step, ends in enumerate(calls):
        live_in, live_out = ends[stream]
        wide_in, wide_out = live_in.double(), live_out.double()
        if step % EVERY == 0:
            with holding(held):
                push(predictor, kept, delta_of(live_out, live_in), step, steps)
            push(predictor, exact, wide_out - wide_in, step, steps)
        elif len(kept.at) >= min(predictor.depth, 3):
            weights = predictor.weights(step, kept.at, steps)
            with holding(held):
                made = predicted(kept, weights, live_in, live_out)
            total = sum(w * d.double() for w, (d,) in zip(weights, exact.deltas, strict=False))
            yield made.double(), total + wide_in, wide_in, wide_out


def push(predictor: Predictor, history: History, delta: Tensor, step: int, steps: int) -> None:
    """Take a refresh's delta in, as the selector does."""
    if predictor.accumulates:
        absorb(steps, history, (delta,), step)
    else:
        history.push((delta,), step, predictor.depth)


def delta_of(live_out: Tensor, live_in: Tensor) -> Tensor:
    """By the body that a refresh runs."""
    body = delta_body(TensorSpec.of(live_out), TensorSpec.of(live_in))
    return torch.as_tensor(body.module(live_out, live_in)[0])


def predicted(
    history: History, weights: Sequence[float], live_in: Tensor, live_out: Tensor
) -> Tensor:
    """By the body that a cached step runs."""
    held = [delta for (delta,) in history.deltas]
    taken = 0 if weights == (1.0,) else len(held)
    specs = [TensorSpec.of(value) for value in (held[0], live_in, live_out)]
    given = [*held, torch.tensor(weights)] if taken else held[:1]
    return torch.as_tensor(predict_body(*specs, taken).module(*given, live_in)[0])


@contextmanager
def holding(held: str) -> Iterator[None]:
    """Deltas in the type of their streams, whatever the compiler's own choice is, or in float32."""

    def dtype(live_out: torch.dtype) -> torch.dtype:
        return live_out if held == "stream" else torch.promote_types(live_out, torch.float32)

    with ExitStack() as stack:
        for room in ("added_bodies", "plan"):
            stack.enter_context(patch(f"deltapass.compiler.{room}.delta_dtype", dtype))
        yield


def unit(values: Tensor, dtype: torch.dtype) -> Tensor:
    """One unit in the last place of each value in a type."""
    _, exponents = torch.frexp(values.abs().clamp_min(torch.finfo(dtype).tiny))
    return torch.ldexp(torch.full_like(values, torch.finfo(dtype).eps), exponents - 1)


def length(parts: Sequence[Tensor]) -> float:
    """Root of the mean square of all values."""
    return float(torch.cat([part.flatten() for part in parts]).square().mean().sqrt())


# ---- images --------------------------------------------------------------------------------------


def embedded(name: str, dtype: str, args: Any) -> list[Row]:
    """Predictions on, and images of, a trained model."""
    rows: list[Row] = []
    pipeline = load_embedded(name, dtype=TYPES[dtype])
    blocks = pipeline.transformer.transformer_blocks
    with watched(blocks, SINGLE_STREAM) as calls:
        halves = images(pipeline, args)
    plain = images(load_embedded(name), args)
    rows.append({"model": name, "type": dtype, "predictor": "plain", **apart(halves, plain)})
    for predictor in args.predictors:
        wanted = images(load_embedded(name), args, predictor)
        for held in HELD:
            about = {"model": name, "type": dtype, "held": held}
            (row,) = predictions(about, calls, [predictor])
            with holding(held):
                drawn = images(load_embedded(name, dtype=TYPES[dtype]), args, predictor)
            rows.append({**row, **apart(drawn, wanted)})
    return rows


def apart(one: Tensor, other: Tensor) -> Row:
    """Mean PSNR, and its standard error over images."""
    values = torch.as_tensor(psnr(one, other))
    return {
        "psnr": round(float(values.mean()), 2),
        "psnr_error": round(float(values.std() / len(values) ** 0.5), 2),
    }


def images(pipeline: Any, args: Any, predictor: str | None = None) -> Tensor:
    """Images of one seed each, (N, C, H, W) in 0..1."""
    torch._dynamo.reset()
    count = args.images
    pipeline.set_progress_bar_config(disable=True)
    if predictor is not None:
        options = {"lowering": "eager", "schedule": "delta-cache-deep", "predictor": predictor}
        pipeline.transformer = torch.compile(
            pipeline.transformer, backend="deltadit", options={**options, "interval": EVERY}
        )
        deltapass.attach(pipeline)
    prompts = pipeline.examples(range(count))
    how = {"num_inference_steps": args.steps, "generator": generators(0, count)}
    return torch.as_tensor(pipeline(prompts, output_type="pt", **how).images)


def table(rows: Sequence[Row]) -> Table:
    """The rows as they are printed."""
    columns = ("model", "type", "predictor", "held", "noise", "error", "psnr", "psnr_error")
    made = Table(*columns)
    for row in rows:
        made.add_row(*(str(row.get(column, "")) for column in columns))
    return made


if __name__ == "__main__":
    main()
