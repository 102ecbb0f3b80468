"""The import rule: rooms look only to their left in one line, and nobody imports a backend."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parent.parent

# Each room imports from itself and from those to its left; the compiler and the sessions, which
# share a place in the line, do not know each other.
DIRECTIONS = (
    "errors < libraries < schedule < options graph < compiler | sessions < selector < cudagraphs "
    "< pipelines < assembly < backend < explanation < bundles < exporting < tuning < public < "
    "demo < bench < cli"
)
# What backends see besides each other: the lowering and format interfaces, and their data.
SEEN_BY_BACKENDS = {
    *("errors", "libraries"),
    *("graph.copying", "graph.executable", "graph.program", "graph.sizes", "graph.wrapped"),
    *("compiler.lowering", "compiler.varying"),
    *("bundles.formats", "bundles.manifest", "bundles.weights_file"),
}
PRIVATE = ("torch._dynamo", "torch._guards", "torch._inductor", "torch._subclasses")
# One place to mend for a new torch release.
MAY_BE_PRIVATE = {
    *("compiler.fake_run", "compiler.forms", "compiler.fragments", "compiler.tracing"),
    *("assembly", "backend", "bench.measuring.compiles"),
}


def seen_from() -> dict[str, set[str]]:
    """Room -> the rooms it may import from, itself among them."""
    left: set[str] = set()
    seen = {}
    for rank in DIRECTIONS.split(" < "):
        here = rank.split()
        # "a | b" stand side by side; "a b" stand one after the other.
        apart = "|" in here
        rooms = [room for room in here if room != "|"]
        for room in rooms:
            seen[room] = {*left, room} if apart else {*left, *rooms}
        left.update(rooms)
    return seen


SEEN = seen_from()


def dotted(path: Path) -> str:
    """The module's name within deltapass: `compiler.plan`, or `backends.onnx.format`."""
    package = ROOT if path.is_relative_to(ROOT / "backends") else ROOT / "deltapass"
    return ".".join(path.relative_to(package).with_suffix("").parts).removesuffix(".__init__")


CORE = {dotted(path): path for path in sorted((ROOT / "deltapass").rglob("*.py"))}
BACKENDS = {dotted(path): path for path in sorted((ROOT / "backends").rglob("*.py"))}


@cache
def nodes(path: Path) -> tuple[ast.AST, ...]:
    return tuple(ast.walk(ast.parse(path.read_text())))


def imported(path: Path) -> Iterator[str]:
    """Dotted names of all imports in the file, those inside functions too."""
    for node in nodes(path):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path.name}: relative import, line {node.lineno}"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def mentioned(path: Path) -> Iterator[str]:
    """Dotted names of all imports and attribute chains in the file; not texts or comments."""
    yield from imported(path)
    for node in nodes(path):
        if isinstance(node, ast.Attribute):
            yield ast.unparse(node)


def own(path: Path) -> set[str]:
    """What of deltapass a file imports: `from deltapass.compiler.plan import Plan` gives
    `compiler.plan.Plan`."""
    prefix = "deltapass."
    return {name.removeprefix(prefix) for name in imported(path) if name.startswith(prefix)}


def test_every_room_has_its_place() -> None:
    rooms = {name.partition(".")[0] for name in CORE} - {"__init__"}
    assert rooms == set(SEEN)


def rooms_seen(path: Path) -> set[str]:
    return {other.partition(".")[0] for other in own(path)}


def test_modules_import_only_from_their_left() -> None:
    assert "backends" not in rooms_seen(CORE["__init__"])
    beyond = {
        name: rooms_seen(path) - SEEN[name.partition(".")[0]]
        for name, path in CORE.items()
        if name != "__init__"
    }
    wrong = {name: rooms for name, rooms in beyond.items() if rooms}
    assert not wrong, "these import from what is not to their left in DIRECTIONS"


def test_backends_see_only_the_interfaces() -> None:
    seen = {
        name: {other.rpartition(".")[0] for other in own(path)} for name, path in BACKENDS.items()
    }
    beyond = {
        (name, module)
        for name, modules in seen.items()
        for module in modules - SEEN_BY_BACKENDS
        if not module.startswith("backends")
    }
    assert seen and not beyond


def test_private_torch_names_stay_in_few_files() -> None:
    private = {
        (name, mention)
        for name, path in CORE.items()
        if name not in MAY_BE_PRIVATE
        for mention in mentioned(path)
        if any(f"{mention}.".startswith(f"{prefix}.") for prefix in PRIVATE)
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
