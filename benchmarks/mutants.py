"""How many small faults in the modules that decide would be noticed by their nearest tests.

    make mutants ARGS="--sample 8 --only selector"

cosmic-ray makes the faults: a comparison turned, a number one off, a branch never taken. Of each
module a sample is drawn (seeded; every place in the file at most once), and for each mutant the
module's nearest tests run in a process forked from this one, in which torch is loaded already.
Mutants that cannot be told from the module (annotations, docstrings), or that cannot be imported,
are not counted. Prints those that survived, as diffs, and a table; both go to a file with --output.
"""

from __future__ import annotations

import argparse
import ast
import datetime
import difflib
import importlib
import importlib.abc
import importlib.machinery
import importlib.util
import os
import random
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

ROOT = Path(__file__).parent.parent
LOG = Path(tempfile.gettempdir()) / f"mutants-{os.getpid()}.log"  # of the last child
INVALID = 77  # exit code of a child whose module cannot be imported

# Module -> its nearest tests.
NEAREST = {
    "selector/timestep": "selector/test_timestep.py selector/test_selector.py",
    "selector/freshness": "selector/test_freshness.py selector/test_selector.py",
    "selector/call": "selector/test_call.py selector/test_selector.py",
    "selector/rows": "selector/test_call.py selector/test_selector.py",
    "sessions/trajectory": "sessions/test_trajectory.py sessions/test_session.py",
    "schedule/emissions": "schedule/test_emissions.py",
    "schedule/rules": "schedule/test_rules.py schedule/test_budget.py",
    "compiler/addends": "compiler/test_streams.py compiler/test_addends.py",
}


Place = tuple[tuple[int, int], tuple[int, int]]


class Mutant(NamedTuple):
    module: str
    line: int
    operator: str
    source: str


def mutants_of(module: str) -> Iterator[list[Mutant]]:
    """All mutants that differ from the module, those of one place together."""
    from cosmic_ray.mutating import mutate_code
    from cosmic_ray.plugins import get_operator

    source = path_of(module).read_text()
    for (start, _), found in sorted(places_of(source).items()):
        made = []
        for name, occurrence in found:
            mutated = mutate_code(source, get_operator(name)(), occurrence)
            if mutated is not None and meaning(mutated) != meaning(source):
                made.append(Mutant(module, start[0], name.removeprefix("core/"), mutated))
        yield made


def places_of(source: str) -> dict[Place, list[tuple[str, int]]]:
    """Start and end in a source -> what may be changed there: operator, its how-manieth place."""
    from cosmic_ray.ast import Visitor, get_ast
    from cosmic_ray.plugins import get_operator, operator_names

    places: dict[Place, list[tuple[str, int]]] = {}

    class Finder(Visitor):
        def __init__(self, name: str) -> None:
            self.name, self.count, self.operator = name, 0, get_operator(name)()

        def visit(self, node):
            for place in self.operator.mutation_positions(node):
                places.setdefault(place, []).append((self.name, self.count))
                self.count += 1
            return node

    for name in operator_names():
        if not get_operator(name).arguments():
            Finder(name).walk(get_ast(source))
    return places


def meaning(source: str) -> str:
    """What is left of a module without annotations and docstrings, which change nothing."""
    try:
        tree = ast.parse(source)
    except SyntaxError:
        return ""
    for node in ast.walk(tree):
        if isinstance(node, ast.arg | ast.AnnAssign):
            node.annotation = ast.Constant(None)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            node.returns = None
        body = getattr(node, "body", None)
        if isinstance(body, list):
            node.body = [line for line in body if not _is_text(line)] or [ast.Pass()]
    return ast.dump(tree)


def _is_text(line: ast.stmt) -> bool:
    return isinstance(line, ast.Expr) and isinstance(line.value, ast.Constant)


def drawn(module: str, sample: int, seed: int) -> list[Mutant]:
    """`sample` mutants at different places, drawn by chance."""
    chance = random.Random(f"{seed} {module}")
    places = [made for made in mutants_of(module) if made]
    chance.shuffle(places)
    return [chance.choice(made) for made in places[:sample]]


class Loader(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Gives one module another source."""

    def __init__(self, mutant: Mutant) -> None:
        self.name, self.mutant = f"deltapass.{mutant.module.replace('/', '.')}", mutant

    def find_spec(self, name: str, *_: object) -> importlib.machinery.ModuleSpec | None:
        return importlib.util.spec_from_loader(name, self) if name == self.name else None

    def exec_module(self, module: ModuleType) -> None:
        path = path_of(self.mutant.module)
        module.__file__ = str(path)
        exec(compile(self.mutant.source, str(path), "exec"), module.__dict__)


def outcome(mutant: Mutant, limit: float) -> str:
    """`killed`, `survived` or `invalid`, by the nearest tests."""
    child = os.fork()
    if child == 0:
        _test(mutant)
    started = time.monotonic()
    while time.monotonic() - started < limit:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            code = os.waitstatus_to_exitcode(status)
            return {0: "survived", INVALID: "invalid"}.get(code, "killed")
        time.sleep(0.05)
    os.kill(child, signal.SIGKILL)  # it hangs, so somebody would notice
    os.waitpid(child, 0)
    return "killed"


def _test(mutant: Mutant) -> None:
    """In the child: import the mutant, and run the tests."""
    import pytest

    log = os.open(LOG, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(log, 1)
    os.dup2(log, 2)
    loader = Loader(mutant)
    sys.meta_path.insert(0, loader)
    try:
        importlib.import_module(loader.name)
    except BaseException:  # noqa: BLE001 - whatever it is, this is no mutant to count
        os._exit(INVALID)
    tests = [f"tests/{name}" for name in NEAREST[mutant.module].split()]
    there = [name for name in tests if (ROOT / name).exists()]
    words = ["-x", "-q", "-n", "0", "-p", "no:cacheprovider", "-p", "no:randomly", *there]
    code = 1
    try:
        code = int(pytest.main(words))
    except BaseException:  # noqa: BLE001 - the child ends here, whatever happens
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        os._exit(code)


def path_of(module: str) -> Path:
    return ROOT / "deltapass" / f"{module}.py"


def diff(mutant: Mutant) -> str:
    before = path_of(mutant.module).read_text().splitlines()
    lines = difflib.unified_diff(before, mutant.source.splitlines(), lineterm="", n=1)
    return "\n".join(list(lines)[3:])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--sample", type=int, default=12, help="mutants a module")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", default="", help="modules whose names hold this")
    parser.add_argument("--limit", type=float, default=120.0, help="seconds a mutant may run")
    parser.add_argument("--output", type=Path, help="file for what is printed")
    chosen = parser.parse_args()
    os.chdir(ROOT)
    import torch  # loaded once, for all children

    torch.set_num_threads(1)
    output = chosen.output.open("w") if chosen.output else None

    def say(text: str) -> None:
        for file in filter(None, (sys.stdout, output)):
            print(text, file=file, flush=True)

    rows = []
    for module in (name for name in NEAREST if chosen.only in name):
        plain = Mutant(module, 0, "none", path_of(module).read_text())
        if outcome(plain, 10 * chosen.limit) != "survived":
            say(f"{module}: its tests fail without a mutant\n{LOG.read_text()[-2000:]}")
            continue
        found: Counter[str] = Counter()
        for mutant in drawn(module, chosen.sample, chosen.seed):
            result = outcome(mutant, chosen.limit)
            found[result] += 1
            if result == "survived":
                say(f"survived: {module} line {mutant.line}, {mutant.operator}\n{diff(mutant)}\n")
        rows.append((module, found["killed"], found["killed"] + found["survived"]))
        say("killed: {1} of {2} in {0}\n".format(*rows[-1]))
    date = datetime.datetime.now(datetime.UTC).date().isoformat()
    say(f"{date}, {chosen.sample} mutants a module, seed {chosen.seed}\n")
    say("| module | killed | of |\n|---|---:|---:|")
    rows.append(("all", sum(row[1] for row in rows), sum(row[2] for row in rows)))
    for row in rows:
        say("| {} | {} | {} |".format(*row))


if __name__ == "__main__":
    main()
