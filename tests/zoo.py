"""Real pipelines of diffusers with tiny random components, by name.

`make_pipe(name)` builds one offline: width 32, four or five blocks, float32, seeded, in eval mode,
with text embeddings in place of text encoders. What it gives is described in zoo_base.py.
Import this module only behind `pytest.importorskip("diffusers")` and `"transformers"`.

Some samplers give NumPy tensors in a way that NumPy deprecates, and no setting of theirs avoids it:
a test module that runs them has `pytestmark = pytest.mark.filterwarnings(NUMPY_WARNINGS)`.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import zoo_flow
import zoo_image
import zoo_video
from zoo_base import Request, Zoo

__all__ = ["NUMPY_WARNINGS", "ZOO_NAMES", "Request", "Zoo", "make_pipe"]

NUMPY_WARNINGS = "ignore:__array_:DeprecationWarning"

_FACTORIES: dict[str, Callable[[str], Zoo]] = {
    **zoo_image.FACTORIES,
    **zoo_flow.FACTORIES,
    **zoo_video.FACTORIES,
}
ZOO_NAMES = tuple(_FACTORIES)


def make_pipe(name: str) -> Zoo:
    """The named pipeline, built anew; two of one name have the same weights."""
    with torch.random.fork_rng(devices=[]):  # biases start from the global generator's values
        torch.manual_seed(0)
        return _FACTORIES[name](name)
