"""What a cached step has of the blocks of its span: their delta, feature or cross-attention.

The delta is what they add: live-out minus live-in. A cached step adds it to a live-in of its own,
so that its sample still counts (Delta-Cache, Eq. 3). The feature is the live-out itself, in place
of which it stands: all that lies before it and served it alone is left out as well. Of
cross-attention only what it gives is kept, in every block: the blocks run on without it (TGATE,
arXiv:2404.02747).
"""

from __future__ import annotations

from typing import Final, Literal, get_args

from deltapass.errors import ScheduleError

Keeps = Literal["delta", "feature", "cross-attention"]
KEEPS: Final[tuple[Keeps, ...]] = get_args(Keeps)


def check_keeps(value: object) -> None:
    """Raise ScheduleError unless it is one of KEEPS."""
    if value not in KEEPS:
        raise ScheduleError(f"keeps is {value!r}", f"It must be one of {', '.join(KEEPS)}")
