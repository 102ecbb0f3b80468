"""`deltapass.load(path)`: a bundle from disk as a callable that stands in for the model.

The same selector, sessions and reports as for a compiled model; only the variants come from files.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

import torch

from deltapass.bundles.checks import read_checked
from deltapass.bundles.folder import check_files
from deltapass.bundles.formats import load_format
from deltapass.bundles.manifest import BundlePlan
from deltapass.bundles.results import built
from deltapass.bundles.variants import LoadedVariants
from deltapass.bundles.weights_file import fingerprint, tensor_at
from deltapass.errors import BundleError, SignatureError, StateError
from deltapass.graph.program import Input, Macs, Role, TensorSpec
from deltapass.graph.sizes import evaluate, read_sizes
from deltapass.schedule.files import schedule_from
from deltapass.selector.model import ModelInfo
from deltapass.selector.recent import Recent
from deltapass.selector.selector import Selector


@final
@dataclass(frozen=True, slots=True)
class Output:
    """What the model gives where the caller asks for an object rather than a tuple."""

    sample: Any

    def __getitem__(self, place: int) -> Any:
        return (self.sample,)[place]


@final
class Config(dict[str, Any]):
    """The exported model's configuration: a dictionary whose entries are attributes too."""

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError as error:
            raise AttributeError(f"the exported model's config has no {name!r}") from error


@final
class LoadedModel(torch.nn.Module):
    """A bundle, called as the exported model was; usable as a pipeline's denoiser.

    Thread-safe: all state lies in sessions. Weights cannot be changed.

    Attributes:
        plan: What plan.json says.
        config: The exported model's configuration.
    """

    def __init__(self, plan: BundlePlan, variants: LoadedVariants, device: torch.device) -> None:
        super().__init__()
        self.plan = plan
        self.config = Config(plan.attributes.get("config") or {})
        self._variants, self._place = variants, device
        self._selectors: Recent[Selector] = Recent()
        self.eval().requires_grad_(False)

    def __deepcopy__(self, memo: dict[int, Any] | None = None) -> LoadedModel:
        """Itself: it cannot be changed, and its engines cannot be copied."""
        return self

    __copy__ = __deepcopy__

    def __reduce_ex__(self, protocol: Any) -> Any:
        """A loaded bundle is no data.

        Raises:
            StateError: Always.
        """
        raise StateError("a loaded bundle cannot be pickled", "Load it in each process")

    @property
    def dtype(self) -> torch.dtype:
        """The exported model's type of numbers."""
        found: torch.dtype = getattr(torch, str(self.plan.attributes["dtype"]))
        return found

    @property
    def device(self) -> torch.device:
        """Where inputs must lie."""
        return self._place

    @contextmanager
    def cache_context(self, *_: Any, **__: Any) -> Iterator[None]:
        """What diffusers' pipelines enter for each branch; an attached pipeline sees it."""
        yield

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """One call, as of the exported model.

        Raises:
            SignatureError: If an argument is not what was exported.
        """
        signature = self.plan.signature
        tensors = signature.tensors(args, kwargs)
        if torch.is_grad_enabled() and any(t.requires_grad for t in tensors.values()):
            raise SignatureError(
                "an input requires gradients, and a bundle has none",
                "Call it under torch.no_grad()",
            )
        arguments = [self._checked(entry.name, tensors) for entry in self.plan.inputs]
        results = self._selector(arguments)(*arguments)
        if signature.whole(args, kwargs):
            return Output(results[0])
        if isinstance(signature.tuple_result, bool):
            return tuple(results) if signature.tuple_result else results[0]
        return built(signature.tuple_result, results)

    def _checked(self, name: str, tensors: Mapping[str, torch.Tensor]) -> torch.Tensor:
        tensor, entry = tensors[name], next(e for e in self.plan.inputs if e.name == name)
        wanted = getattr(torch, entry.dtype)
        if entry.role == Role.TIMESTEP.value and not tensor.dtype.is_floating_point:
            tensor = floating_timestep(name, tensor, wanted)  # samplers give either
        if tensor.dtype != wanted or tensor.ndim != len(entry.shape):
            raise SignatureError(
                f"{name} is {tensor.dtype} of shape {tuple(tensor.shape)}; the bundle takes "
                f"{wanted} of shape ({', '.join(map(str, entry.shape))})",
                "Convert it, or export the model with such an input",
            )
        if tensor.device != self._place:
            raise SignatureError(
                f"{name} lies on {tensor.device}, the bundle runs on {self._place}",
                "Move the inputs, or load the bundle for that device",
            )
        if tensor.layout is not torch.strided or tensor.is_nested:
            raise SignatureError(
                f"{name} is a {str(tensor.layout).removeprefix('torch.')} tensor",
                "Give a dense tensor of the shape that was exported",
            )
        # An engine reads memory as it lies there, whatever view of it the tensor is.
        return tensor.resolve_conj().resolve_neg().contiguous()

    def _selector(self, arguments: list[torch.Tensor]) -> Selector:
        shapes = tuple(tuple(tensor.shape) for tensor in arguments)
        return self._selectors.get(shapes, lambda: self._make(arguments, shapes))

    def _check_shapes(self, shapes: tuple[tuple[int, ...], ...]) -> None:
        plan = self.plan
        taken = (entry.shape for entry in plan.inputs)
        sizes = read_sizes(zip(taken, shapes, strict=True))
        for name, size in sizes.items():
            least, most = plan.dimensions.get(name, (1, None))
            if size < least or (most is not None and size > most):
                raise SignatureError(
                    f"{name} is {size}; the bundle takes {least} to {most or 'any number'}",
                    "Export the model with a wider range",
                )
        for entry, shape in zip(plan.inputs, shapes, strict=True):
            wanted = tuple(evaluate(size, sizes) for size in entry.shape)
            if wanted != shape:
                raise SignatureError(
                    f"{entry.name} has shape {shape}; the bundle takes "
                    f"({', '.join(map(str, entry.shape))}), here {wanted}",
                    "Export the model for this shape, or with that dimension dynamic",
                )

    def _make(self, arguments: list[torch.Tensor], shapes: tuple[tuple[int, ...], ...]) -> Selector:
        self._check_shapes(shapes)
        plan = self.plan
        inputs = tuple(
            Input(name=entry.name, role=Role(entry.role), spec=TensorSpec.of(tensor))
            for entry, tensor in zip(plan.inputs, arguments, strict=True)
        )
        schedule = schedule_from(plan.schedule)
        fits = schedule.forecast.accumulates  # what is held then is no deltas
        facts = ModelInfo(
            inputs=inputs,
            conditioning={at: i.name for at, i in enumerate(inputs) if i.name in plan.conditioning},
            structure=hash((plan.weights["fingerprint"], fits, tuple(i.spec for i in inputs))),
            macs=Macs(plan.macs["paper"], plan.macs["full"]),
            blocks=plan.blocks,
            schedule=schedule,
            steps=plan.steps if plan.fixed_steps else None,
            caches=bool(plan.spans),
            owner=weakref.ref(self),  # who holds this selector
        )
        return Selector(facts, self._variants)


def floating_timestep(name: str, timestep: torch.Tensor, wanted: torch.dtype) -> torch.Tensor:
    """Whole timesteps as another type, which float32 holds; read to see if a smaller one does.

    Raises:
        SignatureError: If it rounds them.
    """
    made = timestep.to(wanted)
    if wanted.itemsize < torch.float32.itemsize and not made.to(timestep.dtype).equal(timestep):
        raise SignatureError(
            f"{name} holds whole numbers that {wanted} rounds",
            "Export the model with such a timestep, or round it yourself",
        )
    return made


def load(
    path: str | Path,
    *,
    model: torch.nn.Module | None = None,
    check_contents: bool = True,
    **options: Any,
) -> LoadedModel:
    """Load a plan bundle.

    Args:
        path: The folder that `deltapass.export` wrote.
        model: A model whose weights the bundle must hold; compared by contents.
        check_contents: Compare every file's checksum. False compares sizes only, which is quicker.
        **options: Of the format: for ONNX `providers`, `threads`, `share_weights`,
            `optimize`, `session_options`; for AOTInductor and TensorRT `device`. See
            docs/bundles.md.

    Returns:
        A callable with the exported model's signature, and its config and dtype.

    Raises:
        BundleError: If the bundle is missing, incomplete, altered, of another version, or holds
            other weights than `model`.
        MissingLibraryError, MissingDeviceError: If it cannot run here.
        OptionError: If an option is unknown or unfit.
    """
    folder = Path(path)
    plan = read_checked(folder)
    check_files(folder, plan.files, contents=check_contents)
    if model is not None:
        _check_weights(plan, model)
    backend = load_format(plan.format)
    segments = backend.open(folder, plan, options)
    return LoadedModel(plan, LoadedVariants(plan, segments), backend.device(plan, options))


def _check_weights(plan: BundlePlan, model: torch.nn.Module) -> None:
    names = plan.weights["names"]
    held = {name: tensor_at(model, name) for name in names}
    missing = [name for name in names if held[name] is None]
    found = {name: tensor for name, tensor in held.items() if tensor is not None}
    if missing or fingerprint(found) != plan.weights["fingerprint"]:
        fact = f"the model has no weight {missing[0]!r}" if missing else "the weights differ"
        raise BundleError(
            f"the bundle was exported from another model: {fact}", "Export this model"
        )
