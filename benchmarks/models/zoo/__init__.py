"""Real pipelines of diffusers with tiny random components, by name.

`make_pipe(name)` builds one offline: width 32, four or five blocks, float32, seeded, in eval mode,
with text embeddings in place of text encoders. What it gives is described in pipeline.py.
Import this package only behind `pytest.importorskip("diffusers")` and `"transformers"`: pipelines
need both.

Some samplers give NumPy tensors in a way that NumPy deprecates, and no setting of theirs avoids it:
a test module that runs them has `pytestmark = pytest.mark.filterwarnings(NUMPY_WARNINGS)`.
"""

from models.zoo.pipeline import ZOO_NAMES, Zoo, make_pipe
from models.zoo.request import Request

__all__ = ["NUMPY_WARNINGS", "ZOO_NAMES", "Request", "Zoo", "make_pipe"]

NUMPY_WARNINGS = "ignore:__array_:DeprecationWarning"
