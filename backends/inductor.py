"""The Inductor lowering: each body compiled on its own with Inductor's standalone compile."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any, Final, cast, final

import torch
from deltapass.backends.inductor_varying import LEAST, Symbols, VaryingBody
from deltapass.backends.kernels_behind import kernels_behind
from torch._guards import tracing
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.symbolic_shapes import ShapeEnv

from deltapass.compiler.varying import with_sizes
from deltapass.graph.copying import copy_of
from deltapass.graph.executable import Lowered
from deltapass.graph.program import Body, TensorSpec

SIMPLE: Final = frozenset(
    {torch.add, torch.sub, torch.mul, torch.clone, torch.empty_strided, "copy_"}
)


@final
class InductorLowering:
    """Compiles a body once for its static shapes; weights are arguments of the result."""

    exact = False
    wrapped = True

    def __init__(self, mode: str | None = None) -> None:
        asked = {} if mode in (None, "default") else torch._inductor.list_mode_options(mode)
        self.asked: dict[str, Any] = dict(asked)
        # What torch's own graphs give is overwritten at the next step, and deltas live longer; a
        # variant is captured as a whole, whatever torch's environment says.
        self.patches = {**self.asked, "triton.cudagraphs": False}

    def can_lower(self, body: Body) -> str | None:
        """Inductor needs data: it cannot compile for tensors without storage."""
        if any(spec.device.type == "meta" for spec in body.inputs):
            return "its tensors are on the meta device"
        return None

    def lower(self, body: Body) -> Lowered:
        """Compile a body, outside Dynamo's own tracing context."""
        if is_trivial(body):
            return body.module.forward
        # Inductor takes ownership of the graph it is given.
        module = torch.fx.GraphModule(body.module, copy_of(body.module.graph))
        with compiling():
            mode = FakeTensorMode(shape_env=ShapeEnv())
            return self._compiled(module, body, [_fake(spec, mode) for spec in body.inputs], mode)

    def lower_varying(self, body: Body, sizes: Mapping[str, int]) -> VaryingBody | None:
        """Compile a body for any sizes, like these at first; None where these are too small."""
        if is_trivial(body) or min(sizes.values(), default=0) < LEAST:
            return None
        with compiling():
            symbols = Symbols(sizes)
            fakes = [symbols.tensor(*each) for each in zip(body.inputs, body.varying, strict=True)]
            module = with_sizes(body, tuple(sizes))
            given = [*symbols.sizes.values(), *fakes]
            run = self._compiled(module, body, given, symbols.mode)
            return VaryingBody(run, symbols.env, symbols.symbols)

    def _compiled(
        self, module: torch.fx.GraphModule, body: Body, fakes: list[Any], mode: FakeTensorMode
    ) -> Lowered:
        _mark_outputs(module, [_fake(spec, mode) for spec in body.outputs])
        compiled: Lowered = torch._inductor.standalone_compile(
            module,
            fakes,
            # Finds `mode` on the outputs, so that no two fake modes meet.
            dynamic_shapes="from_graph",
            options={"config_patches": self.patches},
        )
        return getattr(compiled, "_compiled_fn", compiled)

    def together(self) -> AbstractContextManager[None]:
        """Inside, bodies are lowered that need not be ready before it is left."""
        behind: AbstractContextManager[None] = kernels_behind()
        return behind

    def plain(self, module: torch.fx.GraphModule, arguments: Sequence[Any]) -> Callable[..., Any]:
        """What torch.compile(backend="inductor") does with the graph, in the same mode."""
        from torch._inductor.compile_fx import compile_fx

        compiled: Any = compile_fx(module, list(arguments), config_patches=self.asked)
        return cast("Callable[..., Any]", compiled)


@contextmanager
def compiling() -> Iterator[None]:
    """Outside Dynamo's tracing context, and without Inductor's warnings of its own internals."""
    with tracing(None), torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def is_trivial(body: Body) -> bool:
    """A delta, a prediction or a copy: a few operators on one stream, as fast uncompiled.

    Compiling each costs about 0.6 s of C++ compiler, a tenth of the whole cold compile.
    """
    calls = [node for node in body.module.graph.nodes if node.op.startswith("call")]
    return all(node.target in SIMPLE for node in calls)


def _fake(spec: TensorSpec, mode: FakeTensorMode) -> torch.Tensor:
    with mode:
        return spec.empty()


def _mark_outputs(module: torch.fx.GraphModule, fakes: Sequence[torch.Tensor]) -> None:
    output = next(iter(reversed(module.graph.nodes)))
    for node, fake in zip(output.args[0], fakes, strict=True):
        node.meta["example_value"] = fake
