"""What was done, call by call: noted as plain tuples, made into entries when somebody asks."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import fields
from typing import Any, Final, final

from deltapass.sessions.report import Entry, SessionReport

MAX_ENTRIES: Final = 4096  # calls that are remembered: a server may keep a session for ever
NAMES: Final = tuple(field.name for field in fields(Entry))
REALISED: Final = NAMES.index("realised")


@final
class Log:
    """The newest calls, in order.

    Attributes:
        count: All calls since it was cleared.
        cached: Those of them that skipped a span.
    """

    def __init__(self) -> None:
        self.count = self.cached = 0
        # With the number of the call, for other threads may add some while a report is made.
        self._rows: deque[tuple[int, tuple[Any, ...]]] = deque(maxlen=MAX_ENTRIES)

    def note(self, *row: Any) -> None:
        """Note one call: the fields of an `Entry`, in their order."""
        self.count += 1
        self.cached += row[REALISED] is not None
        self._rows.append((self.count, row))

    def note_entry(self, entry: Entry) -> None:
        """Note one call that is an entry already."""
        self.note(*(getattr(entry, name) for name in NAMES))

    def clear(self) -> None:
        """Forget all calls."""
        self.count = self.cached = 0
        self._rows.clear()

    def __len__(self) -> int:
        return len(self._rows)

    def __iter__(self) -> Iterator[Entry]:
        return (_entry(row) for _, row in list(self._rows))

    def __getitem__(self, at: Any) -> Any:
        return _entry(self._rows[at][1]) if isinstance(at, int) else list(self)[at]

    def report(self, since: int = 0) -> SessionReport:
        """The calls after the first `since` ones; says how many of them are not remembered."""
        rows = [(number, row) for number, row in list(self._rows) if number > since]
        forgotten = rows[0][0] - since - 1 if rows else 0
        return SessionReport(tuple(_entry(row) for _, row in rows), forgotten=forgotten)


def _entry(row: tuple[Any, ...]) -> Entry:
    return Entry(**dict(zip(NAMES, row, strict=True)))
