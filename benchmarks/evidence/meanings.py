"""What values of images mean in the evidence's tables: the suite's measures, under other titles."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

import msgspec

from deltapass.bench.metrics.table import MEASURES as OF_SUITES
from deltapass.bench.record import Measure

# Name in an entry -> in the suites.
NAMES: Final[Mapping[str, str]] = MappingProxyType(
    {
        "plain_psnr": "psnr",
        "fine_psnr": "psnr_fine",
        "right": "right",
        "drawing": "drawing",
        "kid": "kid",
    }
)


def _titled(name: str) -> Measure:
    means = OF_SUITES[NAMES[name]].means
    return msgspec.structs.replace(means, name=name, title=means.title.removeprefix("PSNR "))


MEASURES: Final[Mapping[str, Measure]] = MappingProxyType({name: _titled(name) for name in NAMES})
