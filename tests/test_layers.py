"""The import rule: core modules look only backwards in one list, and nobody imports a backend."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

# Every core module, each importing only from those before it. A new module is entered here.
ORDER = (
    *("errors", "schedule", "presets", "budget", "schedule_files", "options", "graphs"),
    *("observe", "sizes", "constants", "capture", "signature", "dynamic", "exported", "floats"),
    *("sums", "streams", "repeats", "blocks"),
    *("outline", "plan", "rewrite", "segments", "layouts", "lowering", "variants", "facts"),
    *(
        "report",
        "timeline",
        "conditioning",
        "weights",
        "state",
        "active",
        "trajectory",
        "suspension",
    ),
    *("counting",),
    *("session", "signals", "tracker", "moments", "residuals", "freshness", "runtime"),
    *("watch", "attach"),
    *("bundle", "consistency", "tensorfile", "programs", "formats"),
    *("glue", "integrity", "repertoire"),
    *("loaded", "verification"),
    *("compiler", "prepared", "export", "explain", "pipelines", "machine", "demo", "gallery"),
    *("sources", "trajectory_file", "bundle_run", "command_line", "cli_bundles", "cli"),
)
SEEN_BY_BACKENDS = {
    *("backends", "errors", "graphs", "lowering"),
    *("bundle", "formats", "programs", "sizes", "tensorfile"),  # what engine formats are given
}
PRIVATE = ("torch._dynamo", "torch._guards", "torch._inductor", "torch._subclasses")
MAY_BE_PRIVATE = {"observe", "capture", "compiler"}  # one place to mend for a new torch release

CORE = sorted((ROOT / "deltapass").glob("*.py"))
BACKENDS = sorted((ROOT / "backends").glob("*.py"))


def imported(path: Path) -> Iterator[str]:
    """Dotted names of all imports in the file, those inside functions too."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path.name}: relative import, line {node.lineno}"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def mentioned(path: Path) -> Iterator[str]:
    """Dotted names of all imports and attribute chains in the file; not texts or comments."""
    yield from imported(path)
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Attribute):
            yield ast.unparse(node)


def own_modules(path: Path) -> set[str]:
    """Modules of deltapass that the file imports: `deltapass.plan.Plan` gives `plan`."""
    return {name.split(".")[1] for name in imported(path) if name.startswith("deltapass.")}


def test_order_names_no_module_twice() -> None:
    assert len(set(ORDER)) == len(ORDER)


@pytest.mark.parametrize("path", CORE, ids=lambda path: path.stem)
def test_core_module_imports_only_earlier_ones(path: Path) -> None:
    if path.stem in ("__init__", "__main__"):
        assert "backends" not in own_modules(path)
        return
    assert path.stem in ORDER, f"enter {path.stem!r} in ORDER, after what it imports"
    later = own_modules(path) - set(ORDER[: ORDER.index(path.stem)])
    assert not later, f"{path.stem} imports {sorted(later)}, not earlier in ORDER"


@pytest.mark.parametrize("path", BACKENDS, ids=lambda path: path.stem)
def test_backend_sees_only_the_lowering_interface(path: Path) -> None:
    assert own_modules(path) <= SEEN_BY_BACKENDS


@pytest.mark.parametrize("path", CORE, ids=lambda path: path.stem)
def test_private_torch_names_stay_in_few_files(path: Path) -> None:
    if path.stem in MAY_BE_PRIVATE:
        return
    private = {
        name for name in mentioned(path) if any(f"{name}.".startswith(f"{p}.") for p in PRIVATE)
    }
    assert not private


def test_import_is_light(tmp_path: Path) -> None:
    heavy = ("torch._inductor", "diffusers", "matplotlib", "torchmetrics", "typer")
    code = f"import sys, deltapass; print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "[]"
