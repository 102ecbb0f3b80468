"""Real pipelines with a bundle as denoiser: the images of eager Delta-Cache, at other batches too.

The bundle is exported from the first call that the pipeline itself makes, with a dynamic batch.
"""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("diffusers")
pytest.importorskip("transformers")
pytest.importorskip("onnxruntime")

from models.zoo import NUMPY_WARNINGS, ZOO_NAMES, Zoo, make_pipe
from pipeline_oracle import oracle_in

import deltapass
from deltapass.errors import ExportError
from deltapass.pipelines.first_call import first_call

pytestmark = pytest.mark.filterwarnings(NUMPY_WARNINGS)

SCHEDULE = deltapass.Schedule(cached_blocks=2, boundary=0.5)
TOLERANCE = 1e-4  # relative error of the images, which several steps add up to
QUICK = ("sana", "hunyuanvideo")  # a tiny epsilon; masks of booleans
EXPORTED = [
    pytest.param(name, marks=() if name in QUICK else pytest.mark.slow)
    for name in ZOO_NAMES
    if name != "lumina2"
]


def with_bundle(zoo: Zoo, path: Path) -> deltapass.LoadedModel:
    """The pipeline's denoiser as a bundle, in the pipeline."""
    two: dict[str, Any] = {} if "batch" in zoo.fixed else {"batch": 2}
    model, args, kwargs = first_call(zoo.pipe, zoo.call(**two))
    deltapass.export(model, args, kwargs, path, schedule=SCHEDULE, batch=(1, 4), verify=False)
    loaded = deltapass.load(path, model=zoo.denoiser)
    zoo.pipe.transformer = loaded
    return loaded


def expected(name: str, **overrides: Any) -> torch.Tensor:
    """The images by eager Delta-Cache."""
    zoo = make_pipe(name)
    steps, start = zoo.request(**overrides).steps, zoo.start(**overrides)
    table = SCHEDULE.table(steps, len(zoo.blocks), start)
    with oracle_in(zoo, table, **overrides):
        return zoo.run(**overrides)


@pytest.mark.parametrize("name", EXPORTED)
def test_images_are_those_of_eager_delta_cache(name: str, tmp_path: Path) -> None:
    zoo = make_pipe(name)
    with_bundle(zoo, tmp_path / "bundle")
    others = {"guidance": 1.0, "batch": 2, "steps": 9}
    requests = [{}, *({field: others[field]} for field in others if field not in zoo.fixed)]
    with ExitStack() as stack:
        stack.enter_context(deltapass.attach(zoo.pipe))
        for overrides in requests:
            images = zoo.run(**overrides)
            report = deltapass.last_report(zoo.pipe)
            assert report is not None and report.as_planned, overrides
            assert any(entry.realised for entry in report.entries), overrides
            wanted = expected(name, **overrides)
            assert float((images - wanted).norm() / wanted.norm()) < TOLERANCE, overrides


def test_a_model_that_reads_its_mask_is_refused(tmp_path: Path) -> None:
    zoo = make_pipe("lumina2")
    model, args, kwargs = first_call(zoo.pipe, zoo.call())
    with pytest.raises(ExportError, match="cannot trace the model"):
        deltapass.export(model, args, kwargs, tmp_path / "bundle", schedule=SCHEDULE)
    assert not list(tmp_path.iterdir())
