"""A repertoire whose variants are captured when they are first run, and replayed from then on.

It stands before the launched variants, which it asks for everything else. See "CUDA graphs" in
docs/architecture.md.
"""

from __future__ import annotations

import threading
import weakref
from collections import OrderedDict
from collections.abc import Callable, Hashable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, Final, NamedTuple, final

import torch

from deltapass.cudagraphs.cuda import CudaDevice
from deltapass.cudagraphs.device import CapturedGraph, Device, Given
from deltapass.cudagraphs.slots import Slot, Slots, copy_out
from deltapass.errors import LaunchedWarning, warn
from deltapass.graph.program import Input, Macs, Role, shown
from deltapass.schedule.explicit import AnySchedule
from deltapass.schedule.rules import Span, Table
from deltapass.selector.model import ModelInfo, Repertoire, Variant, weight_watch

DEVICES: Final[Mapping[str, Callable[[torch.device], Device]]] = MappingProxyType(
    {"cuda": CudaDevice}
)
CAPTURED: Final = ("eager", "inductor")  # lowerings whose bodies launch kernels and no more
MANY: Final = 8  # captures of one variant
TOO_MANY: Final = (
    f"a variant was captured {MANY} times, for its weights move again and again, or its graphs "
    "find no room"
)


class Graph(NamedTuple):
    """A captured variant: how its inputs are handed over, and what must be as it was.

    Attributes:
        captured: The graph.
        slots: Position of an argument, its slot, and whether it is copied at every call.
        numbers: Position and value of the arguments that are no tensors.
    """

    captured: CapturedGraph
    slots: tuple[tuple[int, Slot, bool], ...]
    numbers: tuple[tuple[int, Any], ...]


@final
class Graphed:
    """The variants of one model as graphs, by one lock and in one memory pool.

    Weights and constants are baked in by their addresses: moved ones are another graph, changed
    ones are not. Everything else is copied in: conditioning and deltas where they are not those of
    the last call, the rest always. What a graph gives is copied out, so it is the caller's.
    An event orders calls on several streams. Where the graphs hold more bytes than they may, those
    go that were not used for the longest time. What cannot be captured runs launched, and one
    warning says why.
    """

    def __init__(
        self, model: ModelInfo, variants: Repertoire, constants: int, device: Device
    ) -> None:
        """Before these variants, which take so many constants after the model's inputs."""
        self._variants, self._device = variants, device
        self._inputs, self._constants_end = model.inputs, len(model.inputs) + constants
        self._by_identity = frozenset(model.conditioning)
        self._weights = weight_watch(model.inputs)
        self._seen: Any = None
        self._places = b""
        self._slots, self._lock = Slots(), threading.Lock()
        self._graphs: OrderedDict[Hashable, Graph] = OrderedDict()
        self._captures: dict[Hashable, int] = {}
        self._done = device.event()
        self._launched = ""  # why nothing is captured any more
        # Slots and graphs must not go while they are read, on whatever stream.
        weakref.finalize(self, self._done.synchronize).atexit = False

    # ---- what the selector asks ---------------------------------------------------------------

    def actual(self, wanted: Span | None) -> Span | None:
        """The span that is really skipped where a schedule wants one skipped."""
        return self._variants.actual(wanted)

    def realised(self, table: Table) -> Table:
        """A table with every span replaced by the one that is really skipped."""
        return self._variants.realised(table)

    def prepare(self, table: Table, schedule: AnySchedule) -> None:
        """Make ready what a schedule needs; graphs are captured when they are first run."""
        self._variants.prepare(table, schedule)

    def fitting(self, span: Span, taken: int) -> int:
        """The weighted deltas a stream of the variant that serves for `taken` of them."""
        return self._variants.fitting(span, taken)

    def streams(self, span: Span) -> int:
        """Number of residual streams over a span: its deltas."""
        return self._variants.streams(span)

    def shapes(self, span: Span) -> tuple[tuple[int, ...], ...]:
        """Shape of what is kept of each of these streams."""
        return self._variants.shapes(span)

    def refresh(self, spans: Sequence[Span]) -> Variant:
        """The full model that also gives the deltas of `spans`."""
        return self._graphed(("refresh", tuple(spans)), self._variants.refresh(spans))

    def cached(self, span: Span, taken: int = 0) -> Variant:
        """The model without the blocks of `span`, by so many weighted deltas a stream."""
        return self._graphed(("cached", span, taken), self._variants.cached(span, taken))

    def full(self) -> Variant:
        """The full model, launched: it is for calls that nobody planned."""
        return self._variants.full()

    def _graphed(self, key: Hashable, variant: Variant) -> Variant:
        return variant if self._launched else GraphedVariant(self, key, variant)

    # ---- graphs -------------------------------------------------------------------------------

    @property
    def nbytes(self) -> int:
        """Bytes (not KiB) that the graphs hold."""
        return sum(graph.captured.nbytes for graph in list(self._graphs.values()))

    @property
    def count(self) -> int:
        """Graphs held."""
        return len(self._graphs)

    def run(self, key: Hashable, variant: Variant, arguments: Sequence[Any]) -> Given:
        """Replay a variant, captured if it was not; or launch it."""
        with self._lock:
            if not self._launched:
                graph = self._graph_for(key, variant, tuple(arguments))
                if graph is not None:
                    return self._replay(graph, arguments)
        return variant(arguments)

    def _replay(self, graph: Graph, arguments: Sequence[Any]) -> Given:
        self._done.wait()
        try:
            for at, slot, always in graph.slots:
                slot.fill(arguments[at], always=always)
            graph.captured.replay()
            results, deltas = graph.captured.given
            return tuple(map(copy_out, results)), tuple(map(copy_out, deltas))
        finally:
            self._done.record()

    def _graph_for(
        self, key: Hashable, variant: Variant, arguments: tuple[Any, ...]
    ) -> Graph | None:
        weights = self._weights.look(arguments, self._seen)
        if weights is not self._seen:
            self._seen, self._places = weights, weights.places.tobytes()
        whole = (key, self._places)
        graph = self._graphs.get(whole)
        if graph is None:
            return self._capture(whole, variant, arguments)
        if any(arguments[at] != value for at, value in graph.numbers):
            self._launch_all("a number among the inputs changes, and graphs hold it")
            return None
        self._graphs.move_to_end(whole)
        return graph

    def _capture(
        self, whole: tuple[Hashable, bytes], variant: Variant, arguments: tuple[Any, ...]
    ) -> Graph | None:
        key = whole[0]
        self._captures[key] = self._captures.get(key, 0) + 1
        why = self._elsewhere(arguments) or (TOO_MANY if self._captures[key] > MANY else "")
        if why:
            self._launch_all(why)
            return None
        self._done.wait()
        try:
            graph = self._captured(variant, arguments)
        except RuntimeError as error:
            variant(arguments)  # what is wrong with the call itself is raised from here
            self._launch_all(f"a capture failed: {str(error).strip().splitlines()[0]}")
            return None
        finally:
            self._done.record()
        self._graphs[whole] = graph
        self._give_way()
        return graph

    def _captured(self, variant: Variant, arguments: tuple[Any, ...]) -> Graph:
        slots, static = [], list(arguments)
        for at, given in enumerate(arguments):
            if torch.is_tensor(given) and not self._is_baked(at):
                slot = self._slots.of(at, given)
                slot.fill(given, always=True)
                slots.append((at, slot, self._always(at)))
                static[at] = slot.tensor
        numbers = [(at, given) for at, given in enumerate(arguments) if not torch.is_tensor(given)]
        with torch.inference_mode(False), torch.no_grad():
            captured = self._device.capture(lambda: variant(static))
        return Graph(captured, tuple(slots), tuple(numbers))

    def _is_baked(self, at: int) -> bool:
        if at < len(self._inputs):
            return self._inputs[at].role is Role.WEIGHT
        return at < self._constants_end

    def _always(self, at: int) -> bool:
        """Whether an argument is copied even where it is the same object: its user may write to it.

        Not so conditioning, which a session trusts too, and what comes from here: deltas, weights
        of predictors.
        """
        return at < len(self._inputs) and at not in self._by_identity

    def _elsewhere(self, arguments: Sequence[Any]) -> str:
        """Why some input cannot be handed to a graph, from where it lies; empty if all can."""
        place = _place(self._inputs)
        for known, given in zip(self._inputs, arguments, strict=False):
            if torch.is_tensor(given) and given.device != place:
                name = shown(known.name)
                return f"{name} lies on {given.device} and the model on {place}; move it there"
        return ""

    def _give_way(self) -> None:
        """Let go of the graphs that were not used for the longest time, but for the newest."""
        while len(self._graphs) > 1 and self.nbytes > self._device.limit:
            self._let_go(1)

    def _let_go(self, count: int) -> None:
        self._done.synchronize()  # none may be running
        for _ in range(count):
            self._graphs.popitem(last=False)

    def _launch_all(self, why: str) -> None:
        self._launched = why
        self._let_go(len(self._graphs))
        _say(why)


@final
class GraphedVariant(NamedTuple):
    """One variant, run by a graph."""

    graphed: Graphed
    key: Hashable
    launched: Variant

    @property
    def macs(self) -> Macs:
        """Multiply-accumulates of one run."""
        return self.launched.macs

    def __call__(self, arguments: Sequence[Any], /) -> Given:
        """Run it."""
        return self.graphed.run(self.key, self.launched, arguments)


def graphed(model: ModelInfo, variants: Repertoire, constants: int, lowering: str) -> Repertoire:
    """Variants as graphs, where the model's device and its lowering have such.

    Args:
        model: The model.
        variants: Its variants, launched.
        constants: How many constants they take after the model's inputs.
        lowering: The name of its lowering.

    Returns:
        The variants as graphs; the launched ones, after a warning, where there can be none.
    """
    place = _place(model.inputs)
    if lowering not in CAPTURED:
        _say(f"the lowering {lowering!r} runs engines, which have streams of their own")
    elif place is None or place.type not in DEVICES:
        _say(f"the model lies on the device {place}, which has none")
    else:
        return Graphed(model, variants, constants, DEVICES[place.type](place))
    return variants


def _place(inputs: Sequence[Input]) -> torch.device | None:
    """Where a model lies: where its weights are; where it has none, its first input."""
    weights = [given for given in inputs if given.role is Role.WEIGHT]
    return next((given.spec.device for given in (*weights, *inputs) if given.spec), None)


def _say(why: str) -> None:
    warn(f"no CUDA graphs, kernels are launched one by one: {why}", LaunchedWarning)
