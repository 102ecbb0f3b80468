"""Work on images that any process can do: asked as plain data, spread over workers, answered."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Hashable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Final, Protocol, TypeVar, cast, final

from deltapass.bench.metrics.features import FeatureStore, pooled_part
from deltapass.bench.metrics.fidelity import batches

Key = TypeVar("Key", bound=Hashable)
AHEAD: Final = 2  # asked of each worker before the first answer is waited for


class Workers(Protocol):
    """Who answers; actors of Ray do, and `Here`."""

    @property
    def slots(self) -> int:
        """How many are at work at once."""

    def submit(self, key: Hashable, task: Any) -> None:
        """Begin, now or when a slot is free."""

    def take(self) -> tuple[Hashable, Any]:
        """The key and the answer of what is done; waits for one."""


@final
@dataclass(frozen=True)
class Ask:
    """A question that pickles.

    Attributes:
        function: At the top of a module.
        arguments: Of it, tensors and plain data.
        network: Name of a network that the function is given first; each process loads its own.
    """

    function: Callable[..., Any]
    arguments: tuple[Any, ...]
    network: str | None = None

    def answer(self, store: FeatureStore) -> Any:
        """What the function gives; networks are those of the store."""
        first = () if self.network is None else (store.network(self.network),)
        return self.function(*first, *self.arguments)


@final
class Here:
    """Answers in this process, in the order in which it was asked, when the answer is wanted."""

    slots = 1

    def __init__(self, store: FeatureStore) -> None:
        self._store = store
        self._waiting: deque[tuple[Hashable, Ask]] = deque()

    def submit(self, key: Hashable, task: Ask) -> None:
        """As `Workers.submit`."""
        self._waiting.append((key, task))

    def take(self) -> tuple[Hashable, Any]:
        """As `Workers.take`: here the work is done."""
        key, ask = self._waiting.popleft()
        return key, ask.answer(self._store)


@final
class RemoteAnswers:
    """What an actor of Ray holds: networks of its own, loaded when they are first asked."""

    def __init__(self, _given: None) -> None:
        self._store = FeatureStore()

    def work(self, ask: Ask) -> Any:
        """The answer."""
        return ask.answer(self._store)


def spread(asked: Iterable[tuple[Key, Any]], workers: Workers) -> Iterator[tuple[Key, Any]]:
    """Keys and answers, as they come; questions are made when a worker is nearly free for them.

    So not all images need be in memory at once.
    """
    waiting = 0
    for key, ask in asked:
        workers.submit(key, ask)
        waiting += 1
        if waiting >= AHEAD * workers.slots:
            yield cast("tuple[Key, Any]", workers.take())
            waiting -= 1
    for _ in range(waiting):
        yield cast("tuple[Key, Any]", workers.take())


def take_features(
    networks: Iterable[str], sets: Iterable[Any], store: FeatureStore, workers: Workers
) -> None:
    """Take the features of sets of images, part by part, and keep them; those kept stay.

    Args:
        networks: Their names.
        sets: Of images (N, C, H, W) in 0..1, read one at a time.
        store: Where they are kept.
        workers: Who looks at a part.

    Raises:
        MissingLibraryError, BenchError: If a network or its weights are not there.
    """
    names = tuple(networks)
    whole: dict[str, int] = {}  # key of a set -> its parts
    found: dict[str, dict[int, Any]] = {}

    def asked() -> Iterator[tuple[tuple[str, int], Ask]]:
        for images in sets:
            for name in names:
                key = store.key(name, images)
                if key in whole or store.has(key):
                    continue
                parts = batches(images)
                whole[key], found[key] = len(parts), {}
                for place, part in enumerate(parts):
                    yield (key, place), Ask(pooled_part, (part,), name)

    for (key, place), features in spread(asked(), workers):
        found[key][place] = features
        if len(found[key]) == whole[key]:
            store.put(key, [features for _, features in sorted(found.pop(key).items())])
