"""docs/results.md, and the tables of records in README, written from the records of the suite.

`--check` writes nothing and fails where a page is not what the records say.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Final

import msgspec

from deltapass.bench.macs.table import MacsRow, macs_table
from deltapass.bench.reading import read_record
from deltapass.bench.record import Record, Row
from deltapass.bench.reporting.claims import Finding, findings, unseen
from deltapass.bench.reporting.tables import macs_markdown, markdown, table, verdict

ROOT: Final = Path(__file__).parents[1]
RESULTS: Final = ROOT / "benchmarks" / "results" / "bench"
PAGE: Final = ROOT / "docs" / "results.md"
README: Final = ROOT / "README.md"
PLACE: Final = re.compile(
    r"(<!-- bench: ([\w.-]+) ([\w.-]+)((?: [\w.-]+)*) -->\n).*?(<!-- end -->)", re.DOTALL
)
HEAD: Final = """# Results

What the benchmark suite measured, held against what the paper says. The page is written from the
records by `python benchmarks/results_page.py`; with `--check` that fails where they differ. Figures
of the paper are its authors' and are called so. All else was measured by this project, at equal
*measured* time and not at equal MACs, with fewer plain steps in every table. Intervals are 95 %;
differences are paired by seed. The two trained models that ship with the package are small: quality
on them is no proof for large ones. Seconds of compiling are one cold run each, at different times
and beside other work: they are not to be compared with each other.
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing, fail on a difference")
    parser.add_argument("--results", type=Path, default=RESULTS)
    args = parser.parse_args()
    records = newest(args.results)
    wanted = {PAGE: page(records, macs_table()), README: filled(README.read_text(), records)}
    differing = [path for path, text in wanted.items() if not holds(path, text)]
    for path in differing:
        if not args.check:
            path.write_text(wanted[path])
        print(f"{path.name}: {'differs from the records' if args.check else 'written'}")
    sys.exit(1 if args.check and differing else 0)


def holds(path: Path, text: str) -> bool:
    return path.exists() and path.read_text() == text


# ---- records -------------------------------------------------------------------------------------


def newest(folder: Path) -> dict[Path, Record]:
    """The latest record of every suite and model, by their names; other JSON files are left out."""
    found: dict[tuple[str, str], tuple[Path, Record]] = {}
    for path in sorted(folder.rglob("*.json")):
        raw = msgspec.json.decode(path.read_bytes())
        if not isinstance(raw, dict) or not {"schema", "suite", "manifest"} <= raw.keys():
            continue
        record = read_record(path)
        key = str(record.suite.get("name")), record.model.name
        if key not in found or found[key][1].date < record.date:
            found[key] = path, record
    return dict(found[key] for key in sorted(found, key=_in_order))


def _in_order(key: tuple[str, str]) -> tuple[Any, ...]:
    """Tables before figures, each by its number."""
    number = re.search(r"\d+", key[0])
    return key[0].startswith("fig"), int(number[0]) if number else 99, *key


# ---- the page ------------------------------------------------------------------------------------


def page(records: dict[Path, Record], macs: Sequence[MacsRow]) -> str:
    """The whole of docs/results.md."""
    sections = [HEAD.rstrip(), agreement([*records.values()]), macs_section(macs)]
    sections += [_section(path, record) for path, record in records.items()]
    return "\n\n".join(sections) + "\n"


def agreement(records: Sequence[Record]) -> str:
    """What of the paper's claims agrees, what does not, and what nothing was measured of."""
    found = findings(records)
    parts = ["## What agrees with the paper, and what does not"]
    parts += [_stated(outcome, text, found) for outcome, text in OUTCOMES.items()]
    missing = unseen(records)
    if missing:
        lines = "\n".join(f"- {claim.source}: {claim.claim}." for claim in missing)
        parts.append(f"**Not measured** by any record here:\n\n{lines}")
    return "\n\n".join(part for part in parts if part)


OUTCOMES: Final = {
    "agrees": "**Agrees:**",
    "partly": "**Agrees in part:**",
    "does not": "**Does not agree:**",
    "not told": "**Measured, and not to be told apart** (intervals too wide, or all the same):",
}


def _stated(outcome: str, text: str, found: Sequence[Finding]) -> str:
    lines = [_line(one) for one in found if one.outcome == outcome]
    return "\n\n".join([text, "\n".join(lines)]) if lines else ""


def _line(one: Finding) -> str:
    where = f"{one.record.suite.get('name')}, {one.record.model.name}"
    why = f" *We think:* {one.why}" if one.why else ""
    return f"- {one.source}: {one.claim}. **Ours** ({where}): {one.ours}.{why}"


def macs_section(rows: Sequence[MacsRow]) -> str:
    """The paper's MACs and speed-ups as counted here on the real architectures."""
    return f"## MACs of the paper, counted again\n\n{macs_markdown(rows)}"


def _section(path: Path, record: Record) -> str:
    name = path.relative_to(ROOT).as_posix() if path.is_relative_to(ROOT) else path.name
    title = f"## {record.suite.get('title', record.suite.get('name'))}: {record.model.name}"
    asked = record.suite.get("question", "")
    link = f"[Record](../{name})."
    return "\n\n".join(part for part in (title, asked, link, markdown(record)) if part)


# ---- README --------------------------------------------------------------------------------------


def filled(text: str, records: dict[Path, Record]) -> str:
    """A page whose places `<!-- bench: SUITE MODEL ROW ... -->` hold a record's short table.

    Raises:
        KeyError: If there is no such record, or no such row in it.
    """
    by_name = {(str(each.suite.get("name")), each.model.name): each for each in records.values()}

    def held(found: re.Match[str]) -> str:
        whole = short(by_name[found[2], found[3]], found[4].split())
        return f"{found[1]}\n{whole}\n\n{found[5]}"

    return PLACE.sub(held, text)


def short(record: Record, names: Sequence[str] = ()) -> str:
    """A line a method that caches: its speed, and its verdicts against fewer steps of that time.

    Args:
        record: Whose.
        names: Of its rows, in this order; all that cache by default.

    Raises:
        KeyError: If there is no such row.
    """
    by_name = {row.name: row for row in _compared(record.rows)}
    labels = {row.name: row.label for row in record.rows}
    lines = [
        [
            row.label,
            _speed(row),
            labels[row.equal_time],
            *(
                verdict(row.against.get(row.equal_time, {}).get(measure.name), measure)
                for measure in record.measures
            ),
        ]
        for row in (by_name[name] for name in names or by_name)
        if row.equal_time is not None
    ]
    titles = ["method", "measured", "against", *(measure.title for measure in record.measures)]
    return table(titles, lines)


def _compared(rows: Iterable[Row]) -> list[Row]:
    return [row for row in rows if row.equal_time is not None and row.failure is None]


def _speed(row: Row) -> str:
    timing = None if row.times is None else row.times.end_to_end
    return "" if timing is None else f"{1 / timing.share:.2f}x"


if __name__ == "__main__":
    main()
