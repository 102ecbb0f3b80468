"""`deltapass.export(...)`: a model as a plan bundle, engines with the cache inside.

The stages of deltapass/backend.py up to the rewrite, on segments instead of blocks; then a format
writes the segments, plan.json says how they make variants, and what was written is compared.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import msgspec
import torch

from deltapass.assembly import as_dynamo_compiles
from deltapass.bundles.folder import file_specs, refuse_existing, written_aside
from deltapass.bundles.formats import load_format
from deltapass.bundles.manifest import PLAN_FILE, BundlePlan, to_text
from deltapass.errors import ExportError
from deltapass.exporting.dynamic_shapes import DynamicShapes
from deltapass.exporting.plain_weights import of_plain_weights
from deltapass.exporting.prepare import Prepared, prepare
from deltapass.exporting.trace import export_graph
from deltapass.exporting.verify import Reference, verify_bundle
from deltapass.options import Options, parse_export_options


def export(  # noqa: PLR0913 - one call is how its users meet it
    model: torch.nn.Module,
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
    path: str | Path,
    *,
    format: str = "onnx",
    batch: tuple[int, int] | None = None,
    dynamic_shapes: DynamicShapes | None = None,
    verify: bool = True,
    overwrite: bool = False,
    engine: Mapping[str, Any] | None = None,
    **options: Any,
) -> BundlePlan:
    """Write a model as a plan bundle.

    Args:
        model: The denoiser, in eval mode, not compiled.
        args: Positional inputs of an example call.
        kwargs: Its keyword inputs. All but tensors is fixed in the bundle.
        path: Folder to write.
        format: "onnx", "aoti" or "tensorrt".
        batch: Least and greatest batch; None fixes the example's. The example needs two samples.
        dynamic_shapes: Further ones that vary: parameter name -> {dimension: torch.export.Dim};
            for lists and dictionaries of tensors the same in their structure.
        verify: Run what was written and compare it with the model.
        overwrite: Replace a bundle that lies at `path`.
        engine: Options of the format.
        **options: Of the backend: `schedule`, `interval`, `cached_blocks`, `boundary`, `order`,
            `steps`, `inputs`, `per_step`.

    Returns:
        What plan.json says.

    Raises:
        ExportError: If it cannot be exported as asked, or (found out first) `path` not be written.
        VerificationError: If what was written differs from the model; nothing is kept then.
        UnsupportedGraphError, ScheduleError, OptionError: As when compiling.
        MissingLibraryError, LoweringError: If the format cannot write it.
    """
    chosen = _parsed(options)
    backend, place = load_format(format), Path(path).resolve()
    refuse_existing(place, overwrite=overwrite)
    backend.check(engine or {})
    model = of_plain_weights(getattr(model, "_orig_mod", model))  # of torch.compile
    with as_dynamo_compiles():  # one at a time: torch.export patches torch for the whole process
        made = prepare(export_graph(model, args, kwargs, dynamic_shapes, batch), chosen)
        with written_aside(place, overwrite=overwrite) as folder:
            plan = made.plan(format, backend.write(made.job(folder, engine)), _attributes(model))
            return _finished(folder, plan, made, model if verify else None)


def _parsed(options: Mapping[str, Any]) -> Options:
    """The options; no schedule may keep cross-attention: a stack is cut between blocks alone."""
    chosen = parse_export_options(options)
    rows = getattr(chosen.schedule, "rows", ())
    kept = {getattr(chosen.schedule, "keeps", None), *(row.keeps for row in rows if row)}
    if "cross-attention" in kept:
        raise ExportError(
            "the schedule keeps cross-attention, which would take engines of parts of blocks",
            "Compile the model with torch.compile, or export a schedule that keeps deltas or "
            "features of whole blocks",
        )
    return chosen


def _finished(
    folder: Path, plan: BundlePlan, made: Prepared, model: torch.nn.Module | None
) -> BundlePlan:
    """Verify what lies in a folder, if a model to compare with is given, and add plan.json."""
    if model is not None:
        reference = Reference(model=model, exported=made.exported, chains=made.chains)
        plan = msgspec.structs.replace(plan, verified=verify_bundle(folder, plan, reference))
    load_format(plan.format).finish(folder, plan)
    plan = msgspec.structs.replace(plan, files=file_specs(folder))
    (folder / PLAN_FILE).write_text(to_text(plan), encoding="utf-8")
    return plan


def _attributes(model: torch.nn.Module) -> dict[str, Any]:
    """What pipelines ask a denoiser for, as far as a file can hold it."""
    config = getattr(model, "config", None)
    known = dict(config) if isinstance(config, Mapping) else {}
    kept = {}
    for name, value in known.items():
        with suppress(TypeError, ValueError):
            kept[str(name)] = json.loads(json.dumps(value, allow_nan=False))
    return {
        "config": kept,
        "dtype": str(_dtype(model)).removeprefix("torch."),
        "class": type(model).__name__,
    }


def _dtype(model: torch.nn.Module) -> torch.dtype:
    """The type a model computes in: that of its first weight which is no 8-bit one."""
    held = (tensor.dtype for tensor in (*model.parameters(), *model.buffers()))
    types = (getattr(model, "dtype", None), *held, torch.float32)
    return next(t for t in types if t is not None and t.is_floating_point and t.itemsize > 1)
