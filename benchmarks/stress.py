"""Who survives load: mixed requests in threads, interleaved, and in an event loop, many given up.

Every finished result is compared, bit for bit, with the same request run alone on the same system
in a fresh state: what a method approximates is no error, what requests do to each other is. Each
system has a process of its own, and rivals a new model for every scenario.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import time
import warnings
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from typing import Any

import torch
from measure import OPTIONS, arguments, record
from rich import box
from rich.console import Console
from rich.table import Table
from stress_check import alone, approximation, count, resident_bytes, tensor_bytes
from stress_load import (
    Serve,
    System,
    event_loop,
    event_loop_pool,
    interleaved,
    make_requests,
    one_by_one,
    threads,
)
from stress_systems import SYSTEMS, Plain


@dataclass(frozen=True)
class Scenario:
    """A column of the table; a `cold` one starts before anything is compiled."""

    label: str
    serve: Serve
    aborts: float = 0.25
    cold: bool = False


SCENARIOS: dict[str, Scenario] = {
    "serial": Scenario("one by one", one_by_one, aborts=0.0),
    "serial-aborts": Scenario("one by one, aborts", one_by_one),
    "threads": Scenario("threads", threads),
    "interleaved": Scenario("one thread, interleaved", interleaved),
    "asyncio": Scenario("asyncio", event_loop),
    "asyncio-pool": Scenario("asyncio, thread pool", event_loop_pool),
    "threads-cold": Scenario("threads, nothing compiled", threads, cold=True),  # last: it resets
}


def main() -> None:
    """Measure every system in turn, record every scenario, print the tables."""
    args = options()
    os.environ["OMP_NUM_THREADS"] = "1"  # of the processes started below
    rows = []
    for name in args.systems:
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(1, mp_context=context) as process:
            measured = process.submit(run_system, name, args).result()
        for row in measured:
            record(args, row, unit="requests")
        rows += measured
    console = Console(width=None if os.isatty(1) else 200)
    console.print(table(rows, args, verdict))
    console.print(table(rows, args, memory))


def options() -> argparse.Namespace:
    args = arguments(
        __doc__,
        without=OPTIONS.keys() - {"save"},
        systems={"nargs": "+", "choices": SYSTEMS, "default": list(SYSTEMS)},
        scenarios={"nargs": "+", "choices": SCENARIOS, "default": list(SCENARIOS)},
        workers={"type": int, "default": 8, "help": "threads, or requests under way"},
        each={"type": int, "default": 25, "help": "requests of every worker"},
        seed={"type": int, "default": 0},
    )
    args.device = "cpu"
    return args


# ---- in a process of its own ------------------------------------------------------------------


def run_system(name: str, args: argparse.Namespace) -> list[dict[str, Any]]:
    """One row for every scenario."""
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")  # refusals are counted by what they do to results
    requests = make_requests(args.seed, args.workers * args.each)
    uncached = alone(Plain(), requests)
    entry = SYSTEMS[name]
    system = entry.make()
    wanted = alone(system, requests)
    rows = []
    for scenario in args.scenarios:
        fresh = entry.rival or SCENARIOS[scenario].cold
        served = measure(entry.make() if fresh else system, SCENARIOS[scenario], args)
        counts = asdict(count(served.pop("outcomes"), wanted, uncached))
        rows.append({"system": name, "scenario": scenario, **counts, **served})
    return [{**row, **approximation(wanted, uncached)} for row in rows]


def measure(system: System, scenario: Scenario, args: argparse.Namespace) -> dict[str, Any]:
    """Serve the requests once: the outcomes, and the memory before and after."""
    requests = make_requests(args.seed, args.workers * args.each, aborts=scenario.aborts)
    scenario.serve(Plain(), requests[: args.workers], args.workers)  # threads get their arenas
    held, resident = tensor_bytes(), resident_bytes()
    started = time.perf_counter()
    outcomes = scenario.serve(system, requests, args.workers)
    seconds = time.perf_counter() - started
    results = sum(o.result.untyped_storage().nbytes() for o in outcomes if o.result is not None)
    return {
        "outcomes": outcomes,
        "left_bytes": tensor_bytes() - results - held,
        "rss_before": resident,
        "rss_after": resident_bytes(),
        "seconds": round(seconds, 2),
    }


# ---- tables -----------------------------------------------------------------------------------


def table(
    rows: list[dict[str, Any]], args: argparse.Namespace, cell: Callable[[dict[str, Any]], str]
) -> Table:
    """Systems by scenarios, in Markdown."""
    made = Table("system", box=box.MARKDOWN)
    for scenario in args.scenarios:
        made.add_column(SCENARIOS[scenario].label)
    for name in args.systems:
        made.add_row(SYSTEMS[name].label, *(cell(row) for row in rows if row["system"] == name))
    return made


def verdict(row: dict[str, Any]) -> str:
    """How many of the requests that were not given up got what they should; what else happened."""
    due, damaged = row["requests"] - row["aborted"], row["wrong"] - row["uncached"]
    harm = {"uncached": row["uncached"], "wrong": damaged, "failed": sum(row["errors"].values())}
    parts = [f"{many} {kind}" for kind, many in harm.items() if many]
    return ", ".join([f"{row['finished'] - row['wrong']} of {due}", *parts])


def memory(row: dict[str, Any]) -> str:
    """Tensor bytes left, and how much the process grew."""
    growth = row["rss_after"] / row["rss_before"] - 1
    return f"{row['left_bytes']} B, {growth:+.1%}"


if __name__ == "__main__":
    main()
