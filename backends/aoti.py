"""The AOTInductor format: a package of compiled code a segment, all weights in one file.

The packages hold no weights: every segment is bound to tensors of the one weights file, which are
mapped into memory, so that on the CPU nothing is copied.
"""

from __future__ import annotations

import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final, final

import torch

from deltapass.bundles.formats import (
    Job,
    SegmentProgram,
    Written,
    WrittenSegment,
    check_option,
    known_options,
)
from deltapass.bundles.manifest import BundlePlan
from deltapass.bundles.weights_file import WEIGHTS_FILE, read_tensors
from deltapass.compiler.lowering import on_device
from deltapass.errors import BundleError, LoweringError, MissingDeviceError
from deltapass.graph.executable import Lowered

WRITE_OPTIONS: Final = MappingProxyType({"inductor": None})
OPEN_OPTIONS: Final = MappingProxyType({"device": None})


@final
class AotiFormat:
    """Compiles segments with AOTInductor, for the device the model lies on.

    Options when written: `inductor`, a mapping of Inductor's own settings. Options when opened:
    `device`, by default that for which it was compiled.
    """

    def check(self, options: Mapping[str, Any]) -> None:
        """Inductor's settings are some that it has, and none that a bundle rests on."""
        from torch._inductor import config

        given = known_options(options, WRITE_OPTIONS)
        settings = given["inductor"]
        if settings is None:
            return
        known = config.get_config_copy().keys() - _packaging().keys()
        strange = [name for name in settings if name not in known] if _is_mapping(settings) else []
        taken = "a mapping of Inductor's settings (names of torch._inductor.config) to values"
        if strange:
            taken = f"{taken}; {strange[0]!r} is none that can be set for a bundle"
        check_option(given, "inductor", _is_mapping(settings) and not strange, taken)

    def write(self, job: Job) -> Written:
        """Compile every segment, and write the weights."""
        options = known_options(job.options, WRITE_OPTIONS)
        files, device = {}, "cpu"
        for segment in job.segments:
            file = f"{segment.name}.pt2"
            compile_segment(segment, job.folder / file, options["inductor"] or {})
            tensors = segment.program.state_dict
            bound = {name: job.store.add(name, tensor) for name, tensor in tensors.items()}
            files[segment.name] = WrittenSegment(file=file, weights=bound)
            device = segment.example[0].device.type
        if job.store.tensors:
            job.store.write(job.folder / WEIGHTS_FILE)
        return Written(segments=files, producer={}, build={"device": device})

    def open(
        self, folder: Path, plan: BundlePlan, options: Mapping[str, Any]
    ) -> Mapping[str, Lowered]:
        """A runner a segment, all bound to the same tensors."""
        device = self.device(plan, options)
        weights = folder / WEIGHTS_FILE
        tensors = read_tensors(weights) if weights.is_file() else {}
        tensors = {name: tensor.to(device) for name, tensor in tensors.items()}
        opened = {}
        for segment in plan.segments:
            bound = {name: tensors[stored] for name, stored in segment.weights.items()}
            opened[segment.name] = open_segment(folder / segment.file, bound, device)
        return opened

    def finish(self, folder: Path, plan: BundlePlan) -> None:
        """Nothing is left to do."""

    def open_to_verify(self, folder: Path, plan: BundlePlan) -> tuple[Mapping[str, Lowered], str]:
        """The runners, on the device they were compiled for."""
        segments = on_device(self.open(folder, plan, {}), self.device(plan, {}))
        return segments, f"AOTInductor, {plan.build['device']}"

    def device(self, plan: BundlePlan, options: Mapping[str, Any]) -> torch.device:
        """The device it was compiled for, or another of its kind.

        Raises:
            OptionError: If the device is of another kind.
            MissingDeviceError: If this machine has none of that kind.
        """
        kind = str(plan.build["device"])
        given = known_options(options, OPEN_OPTIONS)
        wanted = kind if given["device"] is None else given["device"]
        taken = f"a {kind} device: the bundle was compiled for it"
        check_option(given, "device", _kind_of(wanted) == kind, taken)
        if kind == "cuda" and not torch.cuda.is_available():
            raise MissingDeviceError(
                "the bundle was compiled for a CUDA device, and there is none here",
                "Export the model on the CPU for use there",
            )
        place = torch.device(wanted)
        if str(place) == "cuda":  # which no tensor's device is
            return torch.device(kind, torch.cuda.current_device())
        return place


def _is_mapping(value: object) -> bool:
    return isinstance(value, Mapping)


def _kind_of(device: Any) -> str | None:
    """`cuda` of "cuda:1"; None of what names no device."""
    try:
        return torch.device(device).type if isinstance(device, str | torch.device) else None
    except RuntimeError:
        return None


def compile_segment(segment: SegmentProgram, path: Path, settings: Mapping[str, Any]) -> None:
    """Compile one segment into a package.

    Raises:
        LoweringError: If Inductor cannot compile it.
    """
    from torch._inductor import aot_compile
    from torch._inductor.package.package import package_aoti

    try:
        with warnings.catch_warnings(), torch.no_grad():
            # Inductor warns about its own internals, which users can do nothing about.
            warnings.simplefilter("ignore")
            module: Any = segment.program.module(check_guards=False)
            files: Any = aot_compile(module, segment.example, options={**_packaging(), **settings})
            package_aoti(str(path), files)
        _compress(path)
    except Exception as error:
        raise LoweringError("aoti", segment.name, f"{type(error).__name__}: {error}") from error


def _packaging() -> dict[str, Any]:
    """Code alone: no weights, and none of the debug information that torch adds by default."""
    from torch._inductor import config

    chosen: dict[str, Any] = {
        "aot_inductor.package": True,
        "aot_inductor.package_constants_in_so": False,
        # Else weights of up to eight numbers are compiled into the code, and cannot be bound.
        "always_keep_tensor_constants": True,
    }
    if hasattr(config.aot_inductor, "enable_line_tables"):  # not in every torch
        chosen["aot_inductor.enable_line_tables"] = False
    return chosen


def _compress(path: Path) -> None:
    """Leave the sources out of a package and deflate the rest, which torch reads as well."""
    packed = path.with_suffix(".packed")
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as new:
        for name in old.namelist():
            if not name.endswith(".cpp"):
                new.writestr(name, old.read(name))
    packed.replace(path)


def open_segment(path: Path, weights: Mapping[str, torch.Tensor], device: torch.device) -> Lowered:
    """A package as a callable on dense tensors, bound to weights.

    Raises:
        BundleError: If torch does not take the package, or it wants other weights.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of devices that differ in nothing that matters
            loaded: Any = torch._inductor.aoti_load_package(
                str(path), device_index=-1 if device.index is None else device.index
            )
        wanted = set(loaded.get_constant_fqns())
        if not wanted <= set(weights):
            raise BundleError(
                f"{path.name} needs weights that plan.json does not name: "
                f"{', '.join(sorted(wanted - set(weights)))}",
                "Export the model again",
            )
        if wanted:
            bound = {name: weights[name] for name in wanted}
            # What is bound without a copy is never let go of. Of a file mapped into memory that is
            # some of the address space; of a GPU's memory it would be the weights.
            mapped = device.type == "cpu"
            loaded.load_constants(bound, check_full_update=True, user_managed=mapped)
    except RuntimeError as error:
        text = str(error).strip().splitlines()[0]
        raise BundleError(f"torch cannot load {path}: {text}", "Export the model again") from error
    run: Any = loaded.loader.boxed_run
    return lambda *arguments: run(list(arguments))
