"""Two saved runs of `make bench` side by side: times, their change, and all of `extra_info`.

    make bench ARGS=--benchmark-autosave        saves a run in .benchmarks, twice
    make bench-compare A=0001 B=0002            or two files of --benchmark-json

The comparison of pytest-benchmark itself never shows `extra_info`, where the counts are. Medians
are compared, and the best, which other work on the machine disturbs least. Times of two runs differ
by what else the machine did meanwhile: believe what was measured in turns, within one run
(`over_plain`, `us_per_call`), before any of them.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

SAVED = Path(".benchmarks")
UNITS = ((1.0, "s"), (1e-3, "ms"), (1e-6, "us"))


@dataclass(frozen=True)
class Run:
    """One benchmark of a saved run: median and best in seconds, and what stands beside them."""

    seconds: float
    best: float
    extra: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Saved:
    """A saved run: where and when it was, and its benchmarks by name."""

    about: str
    runs: dict[str, Run]


def read(name: str, folder: Path = SAVED) -> Saved:
    """A saved run: a file, or the beginning of the name of one that was saved in the folder.

    Raises:
        SystemExit: If there is none, or several.
    """
    path = Path(name)
    if not path.is_file():
        found = sorted(folder.rglob(f"{name}*.json"))
        if len(found) != 1:
            raise SystemExit(f"{len(found)} saved runs are named {name}* in {folder}: name one")
        (path,) = found
    content = json.loads(path.read_text())
    runs = {
        one["fullname"]: Run(one["stats"]["median"], one["stats"]["min"], one.get("extra_info", {}))
        for one in content["benchmarks"]
    }
    commit, machine = content["commit_info"], content["machine_info"]
    dirty = "+" if commit.get("dirty") else ""
    at = f"{str(commit.get('id', 'no commit'))[:7]}{dirty}, {content['datetime'][:16]}"
    return Saved(f"{at}, {machine.get('cpu', {}).get('brand_raw') or machine.get('node')}", runs)


def time_text(seconds: float) -> str:
    """In the largest unit of which it is one or more."""
    scale, unit = next((u for u in UNITS if seconds >= u[0]), UNITS[-1])
    return f"{seconds / scale:.3g} {unit}"


def changes(before: dict[str, Any], after: dict[str, Any], *, every: bool) -> Iterator[str]:
    """A line for each entry of `extra_info` that differs, or for every one."""
    for name in dict.fromkeys((*before, *after)):
        one, other = before.get(name), after.get(name)
        if one == other:
            if every:
                yield f"{name} {one}"
            continue
        numbers = isinstance(one, int | float) and isinstance(other, int | float)
        share = f" ({100 * (other / one - 1):+.1f} %)" if numbers and one else ""
        yield f"{name} {one} -> {other}{share}"


def table(a: Saved, b: Saved, *, every: bool = False) -> Table:
    """A row for each benchmark of either run."""
    made = Table(title=f"A: {a.about}\nB: {b.about}", title_justify="left", show_lines=True)
    made.add_column("benchmark", overflow="fold")
    for heading in ("A", "B", "B to A", "of the best"):
        made.add_column(heading, justify="right", no_wrap=True)
    made.add_column("extra_info", overflow="fold")
    for name in dict.fromkeys((*a.runs, *b.runs)):
        one, other = a.runs.get(name), b.runs.get(name)
        times = [time_text(run.seconds) if run else "-" for run in (one, other)]
        shares = (slower(one, other), slower(one, other, best=True)) if one and other else ()
        said = [f"{share:+.1f} %" for share in shares] or ["-", "-"]
        beside = changes(one.extra if one else {}, other.extra if other else {}, every=every)
        made.add_row(Text(name.removeprefix("benchmarks/")), *times, *said, Text("\n".join(beside)))
    return made


def slower(one: Run, other: Run, *, best: bool = False) -> float:
    """By how many percent the second's median takes longer, or its best."""
    return 100 * (other.best / one.best if best else other.seconds / one.seconds) - 100


def regressions(a: Saved, b: Saved, percent: float) -> list[str]:
    """Benchmarks of both runs that take longer by more than so many percent."""
    both = [name for name in a.runs if name in b.runs]
    return [name for name in both if slower(a.runs[name], b.runs[name]) > percent]


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the table; with --fail leave with an error where something got slower."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("a", help="a file, or the number of a saved run")
    parser.add_argument("b", help="the one that is compared with it")
    parser.add_argument("--all", action="store_true", help="equal entries of extra_info too")
    parser.add_argument("--fail", type=float, metavar="PERCENT", help="if slower by more, fail")
    given = parser.parse_args(arguments)
    a, b = read(given.a), read(given.b)
    Console().print(table(a, b, every=given.all))
    if given.fail is not None and (worse := regressions(a, b, given.fail)):
        raise SystemExit(f"slower by more than {given.fail:g} %: {', '.join(worse)}")


if __name__ == "__main__":
    main()
