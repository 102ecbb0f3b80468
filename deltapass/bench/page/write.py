"""Records in, the page and what lies beside it out."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from deltapass.bench.metrics.intervals import FEW
from deltapass.bench.page.advice import at_equal_time, named, states_of
from deltapass.bench.page.beside import CSV_NAME, JSON_NAME, as_csv, as_json
from deltapass.bench.page.data import data_of, embedded
from deltapass.bench.page.figures import write_figures
from deltapass.bench.page.sections import GLANCE, Section, sections_of
from deltapass.bench.page.shares import COSTS, is_stable, share, timing
from deltapass.bench.page.wording import FILTERS, KINDS, MARKS
from deltapass.bench.record import Record
from deltapass.libraries import needs

PAGE_NAME: Final = "index.html"
FIGURES: Final = "figures"
WEB: Final = Path(__file__).parent / "web"


def write_page(records: Sequence[Record], folder: Path, sources: Sequence[Path] = ()) -> Path:
    """Write a page of its own, its data as JSON and CSV, and its figures as SVG and PNG.

    The page is one file that needs neither a server nor a network nor the files beside it.

    Args:
        records: Each becomes a section.
        folder: For `index.html` and the others; made where it is missing.
        sources: Of each record, the folder that the paths of its images are relative to; by
            default `folder` for all.

    Returns:
        The page's path.

    Raises:
        MissingLibraryError: If jinja2, pillow or matplotlib is not installed.
    """
    folder.mkdir(parents=True, exist_ok=True)
    sections = sections_of(records, sources or [folder] * len(records))
    drawn = write_figures(records, [each.anchor for each in sections], folder / FIGURES)
    (folder / JSON_NAME).write_bytes(as_json(records))
    (folder / CSV_NAME).write_text(as_csv(records), encoding="utf-8")
    page = folder / PAGE_NAME
    names = [path.relative_to(folder).as_posix() for path in drawn if path.suffix == ".svg"]
    page.write_text(render(sections, names), encoding="utf-8")
    return page


def render(sections: Sequence[Section], figures: Sequence[str] = ()) -> str:
    """The page's text.

    Args:
        sections: The records on it.
        figures: Relative paths of the figures beside it.

    Raises:
        MissingLibraryError: If jinja2 is not installed.
    """
    with needs("jinja2", "bench"):
        from jinja2 import Environment, FileSystemLoader, StrictUndefined
    environment = Environment(
        loader=FileSystemLoader(WEB),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(FILTERS)
    environment.globals.update(_vocabulary())
    style, script = inlined("style", ".css"), inlined("script", ".js")
    return environment.get_template("page.html.j2").render(
        title=_title(sections),
        sections=sections,
        warned=_warned(sections),
        figures=figures,
        style=style,
        script=script,
        style_hash=_hash(style),
        script_hash=_hash(script),
        data=embedded([data_of(each.record, each.pictures) for each in sections]),
    )


def inlined(kind: str, suffix: str) -> str:
    """All files of a kind, in the order of their names, as one text."""
    parts = sorted((WEB / kind).glob(f"*{suffix}"))
    return "\n" + "\n".join(part.read_text(encoding="utf-8") for part in parts)


def _title(sections: Sequence[Section]) -> str:
    titles = (each.record.suite.get("title") or each.record.suite.get("name") for each in sections)
    return "; ".join(dict.fromkeys(str(title) for title in titles if title)) or "Benchmarks"


def _warned(sections: Sequence[Section]) -> dict[str, list[Section]]:
    """Each warning once, with the records that it is of."""
    found: dict[str, list[Section]] = {}
    for section in sections:
        for text in section.warnings:
            found.setdefault(text, []).append(section)
    return found


def _vocabulary() -> dict[str, Any]:
    """What templates call by name."""
    functions = (at_equal_time, is_stable, named, share, states_of, timing)
    return {
        **{function.__name__: function for function in functions},
        **{"costs": COSTS, "kinds": KINDS, "marks": MARKS, "tiers": GLANCE, "few": FEW},
        **{"json_name": JSON_NAME, "csv_name": CSV_NAME},
    }


def _hash(text: str) -> str:
    """Of an inline script or style, for the page's own policy: nothing else may run."""
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
