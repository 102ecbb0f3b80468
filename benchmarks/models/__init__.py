"""The models that tests and benchmarks share, with seeded random weights. Nothing is downloaded.

| module | what |
|---|---|
| toys, adaln | one small denoiser for each way of building a transformer, of parts.py |
| diffusion | classes of diffusers, built from the rows of configs.toml |
| calls | an example call of such a model, at any size, type and device |
| tiny | the tiny ones with their blocks, streams and calls |
| zoo | real pipelines of diffusers round the tiny ones; needs transformers too |

The toys are offered here; everything else is imported from its module, behind
`pytest.importorskip("diffusers")` in tests. Scripts of benchmarks/ find this package beside them,
and pytest by its `pythonpath`.
"""

from models.adaln import AdaLNBlock, AdaLNDenoiser
from models.parts import Attention, B, C, Conditioning, D, Denoiser, S, T, mlp
from models.seeds import noise, randomise
from models.toys import TOYS, CrossAttentionBlock, make, make_controlled

__all__ = [
    "TOYS",
    "AdaLNBlock",
    "AdaLNDenoiser",
    "Attention",
    "B",
    "C",
    "Conditioning",
    "CrossAttentionBlock",
    "D",
    "Denoiser",
    "S",
    "T",
    "make",
    "make_controlled",
    "mlp",
    "noise",
    "randomise",
]
