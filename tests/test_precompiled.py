"""deltapass/precompiled.py: a second process does not trace or compile; its bits are the same."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import models
import pytest
import torch

from deltapass.errors import NotPrecompiledError

kept_by_torch = pytest.importorskip("torch._dynamo.precompile_context")
precompiled = pytest.importorskip("deltapass.precompiled")

MODELS = Path(models.__file__).parent.parent
SCRIPT = """
import json, sys
import models, torch
asked = json.loads(sys.argv[1])
torch.manual_seed(0)
model = models.make("adaln", seed=asked.get("seed", 0), depth=4)
args, kwargs = model.inputs(500.0)
chosen = {"options": asked["options"]} if "options" in asked else {}
with torch.no_grad():
    run = torch.compile(model, backend=asked["backend"], fullgraph=True, dynamic=False, **chosen)
    output = torch.utils._pytree.tree_leaves(run(*args, **kwargs))[0]
torch.compiler.save_cache_artifacts()
counters = torch._dynamo.utils.counters
print(json.dumps({
    "traced": counters["stats"]["unique_graphs"],
    "compiled": counters["inductor"]["fxgraph_cache_miss"],
    "output": output.flatten().tolist(),
}))
"""


def process(cache: Path, **asked: Any) -> dict[str, Any]:
    """What a process of its own did, with this cache directory."""
    environment = {
        **os.environ,
        "TORCHINDUCTOR_CACHE_DIR": str(cache),
        "TORCH_CACHING_PRECOMPILE": "1",
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": str(MODELS),
    }
    asked = {"backend": "deltadit", "options": {"lowering": "eager", "steps": 8}, **asked}
    command = [sys.executable, "-P", "-c", SCRIPT, json.dumps(asked)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def plain(**made: Any) -> list[float]:
    """The output of the model in eager PyTorch."""
    torch.manual_seed(0)
    model = models.make("adaln", **{"depth": 4, **made})
    args, kwargs = model.inputs(500.0)
    with torch.no_grad():
        output = torch.utils._pytree.tree_leaves(model(*args, **kwargs))[0]
    found: list[float] = output.flatten().tolist()
    return found


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache directory after a first process."""
    cache = tmp_path_factory.mktemp("cache")
    first = process(cache)
    assert first["traced"] == 1
    assert first["output"] == plain()
    return cache


def test_second_process_with_inductor_neither_traces_nor_compiles(tmp_path: Path) -> None:
    options = {"steps": 8}
    first = process(tmp_path, options=options)
    assert first["compiled"] > 0
    second = process(tmp_path, options=options)
    assert (second["traced"], second["compiled"]) == (0, 0)
    assert second["output"] == first["output"]


def test_weights_are_those_of_the_second_process(cache: Path) -> None:
    other = process(cache, seed=1)
    assert other["traced"] == 0
    assert other["output"] == plain(seed=1)


def test_options_are_those_of_the_second_process(cache: Path) -> None:
    other = process(cache, options={"lowering": "eager", "schedule": "none"})
    assert other["traced"] == 0
    assert other["output"] == plain()


def test_another_backend_does_not_get_the_selector(cache: Path) -> None:
    other = process(cache, backend="aot_eager", options={})
    assert other["traced"] == 1


def test_damaged_file_is_traced_again(tmp_path: Path) -> None:
    process(tmp_path)
    (entry,) = tmp_path.rglob("dynamo/**/entry")
    content = bytearray(entry.read_bytes())
    content[len(content) // 4 :: 7] = b"\0" * len(content[len(content) // 4 :: 7])
    entry.write_bytes(bytes(content))
    again = process(tmp_path)
    assert again["traced"] == 1
    assert again["output"] == plain()


def test_damaged_outline_is_refused_where_torch_reads_it() -> None:
    made = precompiled.KeptOutline(key="__compiled_fn_0", content=b"damaged")
    with pytest.raises(NotPrecompiledError):
        made.__setstate__({"key": "__compiled_fn_0", "content": b"damaged"})


def test_outline_is_refused_outside_of_torch_compile() -> None:
    with pytest.raises(NotPrecompiledError, match=r"no torch\.compile asks"):
        precompiled.KeptOutline(key="__compiled_fn_0", content=b"").after_deserialization()
