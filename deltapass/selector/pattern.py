"""What the first timesteps of a trajectory tell: are they a sampler's, and how many will there be?

Nobody says the number of steps, and up to FEW_STEPS of them are cached otherwise than more. Most
samplers space a line evenly, or bend it: flow matching shifts sigma = 1 - k/n to
s * sigma / (1 + (s - 1) * sigma). Both are fractions of two lines in k, and of such a curve three
points tell the rest: so the steps from noise level 1 to 0 follow from three of them, whatever the
shift. Spacings that quicken (Karras) are taken for shorter than they are, which is safe.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from enum import Enum
from typing import Final, final

from deltapass.schedule.rules import FEW_STEPS

REGULAR: Final = 0.3  # of a gap: how far the next one may lie from where the two before point
GAPS: Final = 3  # that must be regular before a trajectory is sure


@final
class Length(Enum):
    """What is known of the number of steps."""

    UNKNOWN = "unknown"
    FEW = "few"
    MANY = "many"


def are_regular(gaps: Sequence[float], grain: float) -> bool:
    """Whether the last gaps between timesteps, none of them 0, are those of one sampler.

    Args:
        gaps: Sizes of the gaps, the newest last.
        grain: How much a timestep may have been rounded, in its own unit.
    """
    if len(gaps) < GAPS:
        return False
    first, second, third = gaps[-GAPS:]
    return abs(third - second * second / first) <= REGULAR * second + 3 * grain


def length_of(levels: Sequence[float], grain: float) -> Length:
    """How many steps a trajectory has whose first ones lie at these noise levels.

    The ninth step proves that it has many. Before that a count decides that surely lies above or
    below; where rounding leaves both open, more steps tell.

    Args:
        levels: Falling noise levels of the steps so far, 1.0 being pure noise.
        grain: How much a level may have been rounded.
    """
    last = len(levels) - 1
    apart = last // 2
    if last >= FEW_STEPS:
        return Length.MANY
    if not apart or levels[last] >= levels[0]:
        return Length.UNKNOWN
    even = last / (levels[0] - levels[last])  # for those that slow down the curve would say more
    start, middle, end = levels[0], levels[apart], levels[2 * apart]
    least, most = (min(even, apart * _steps(start, middle + slip, end)) for slip in (grain, -grain))
    if least > FEW_STEPS + 0.5:
        return Length.MANY
    is_few = most < FEW_STEPS + 0.5 or last == FEW_STEPS - 1
    return Length.FEW if is_few else Length.UNKNOWN


def _steps(start: float, middle: float, end: float) -> float:
    """Steps from noise level 1 to 0 on the curve through three levels, one step apart."""
    if middle <= end:
        return math.inf
    if middle >= start:
        return 0.0

    def at(level: float) -> float:
        if level == start:
            return 0.0
        ratio = (start - end) * (middle - level) / ((middle - end) * (start - level))
        return 2 / (2 - ratio) if ratio < 2 or level > start else math.inf

    return at(0.0) - at(1.0)
