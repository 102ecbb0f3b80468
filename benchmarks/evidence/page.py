"""The tables of docs/evidence.md, written from the newest record of each model."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any, Final

from evidence.tables import markdown

ROOT: Final = Path(__file__).parents[2]
PAGE: Final = ROOT / "docs" / "evidence.md"
RESULTS: Final = ROOT / "benchmarks" / "results"
PLACE: Final = re.compile(r"(<!-- record: (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)


def filled(page: str, results: Path = RESULTS) -> str:
    """The page with the tables of every model that it has a place for.

    Raises:
        FileNotFoundError: If a model has no record.
    """
    return PLACE.sub(lambda found: found[1] + _section(newest(found[2], results)) + found[3], page)


def newest(model: str, results: Path) -> Path:
    """The latest record of a model, by the date in its name.

    Raises:
        FileNotFoundError: If there is none.
    """
    records = sorted(results.glob(f"equal-time-{model}_*.json"), key=lambda path: path.stem[-10:])
    if not records:
        raise FileNotFoundError(f"{results} has no record equal-time-{model}_*.json")
    return records[-1]


def _section(path: Path) -> str:
    record = json.loads(path.read_text())
    link = f"../benchmarks/results/{path.name}"
    return f"\n{_circumstances(record, link)}\n\n{markdown(record)}\n\n"


def _circumstances(record: dict[str, Any], link: str) -> str:
    timed, noise = record["timed"], record["plain_over_itself"]
    said = (
        f"{record['images']} images from seed {record['first_seed']} on, guidance 2.0; "
        f"{record['hardware']}, torch {record['torch']}; commit {record['commit']}, "
        f"{record['date']} ([record]({link})). Judge: {record['judge']}."
    )
    if not timed:
        return f"{said} Times were not measured."
    options, load = record["options"], timed["load_average"]
    return (
        f"{said} Times: {options['clock']} time, medians of {len(load)} rounds of "
        f"{options['timed']} images under Inductor, over the full plain run of the same round; "
        f"that run over itself: {noise['median']:.3f} ({noise['low']:.3f} to "
        f"{noise['high']:.3f}). The machine's load average was {min(load):.1f} to {max(load):.1f}."
    )
