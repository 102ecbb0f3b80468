"""The command line that builds the same engine with the vendor's own program."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Final

from deltapass.backends.tensorrt.build import Ranges

PROGRAMS: Final[Mapping[str, str]] = MappingProxyType(
    {"tensorrt": "trtexec", "tensorrt-rtx": "tensorrt_rtx"}
)


def trtexec_line(onnx_path: Path | str, engine: Path | str, ranges: Ranges, flavour: str) -> str:
    """The command, quoted for a shell. The file it writes is the engine alone, not a cache file.

    Ranges are named only where the graph leaves a dimension free: the program refuses them
    otherwise, and takes 1 for what is free and not named.
    """
    words = [PROGRAMS[flavour], f"--onnx={onnx_path}", f"--saveEngine={engine}", "--stronglyTyped"]
    if any(span.free or len({*span.shapes}) > 1 for span in ranges.values()):
        for at, word in enumerate(("--minShapes", "--optShapes", "--maxShapes")):
            shapes = ("x".join(map(str, span.shapes[at])) for span in ranges.values())
            pairs = (f"{name}:{shape}" for name, shape in zip(ranges, shapes, strict=True))
            words.append(f"{word}={','.join(pairs)}")
    return shlex.join(words)
