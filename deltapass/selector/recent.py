"""Things made for keys of which any number may come, such as selectors for shapes."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Any, Final, Generic, TypeVar, final

LEAST: Final = 64  # things kept in any case
MOST: Final = 1024

Made = TypeVar("Made")


@final
class Recent(Generic[Made]):
    """What was used last, made once for each key; what was not used for longest gives way.

    `LEAST` things are kept. A key that comes back after it gave way shows that more are in use,
    for instance shapes that take turns: then twice as many are kept, up to `MOST`. Keys that never
    come back, such as the sizes of single requests, take no more room than `LEAST` things.
    """

    def __init__(self) -> None:
        self._kept: OrderedDict[Hashable, Made] = OrderedDict()
        self._gone: OrderedDict[Hashable, None] = OrderedDict()  # keys alone, the newest `MOST`
        self._room = LEAST
        self._lock: Any = threading.RLock()

    def get(self, key: Hashable, make: Callable[[], Made]) -> Made:
        """The thing made for a key; `make` is called where there is none."""
        try:
            found = self._kept[key]
            self._kept.move_to_end(key)
        except KeyError:  # never made, or another thread just let it go
            with self._lock:  # two threads with the same new key must get the same thing
                return self._kept[key] if key in self._kept else self._add(key, make())
        return found

    def _add(self, key: Hashable, made: Made) -> Made:
        if key in self._gone:
            del self._gone[key]
            self._room = min(2 * self._room, MOST)
        self._kept[key] = made
        while len(self._kept) > self._room:
            oldest, _ = self._kept.popitem(last=False)
            self._gone[oldest] = None
        while len(self._gone) > MOST:
            self._gone.popitem(last=False)
        return made

    def __len__(self) -> int:
        return len(self._kept)
