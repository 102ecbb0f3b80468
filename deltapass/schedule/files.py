"""Schedules as text and as files: what a person writes down and reads back."""

from __future__ import annotations

import itertools
import json
import os
import re
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from deltapass.errors import ScheduleError, ScheduleFileError
from deltapass.schedule.checks import check_count, unknown_name
from deltapass.schedule.explicit import AnySchedule, ExplicitSchedule
from deltapass.schedule.keeps import KEEPS, Keeps
from deltapass.schedule.made_for import made_for_content, made_for_from
from deltapass.schedule.predictors import REUSE
from deltapass.schedule.presets import FIELD_NAMES, named_schedule
from deltapass.schedule.rules import (
    REGIONS,
    Schedule,
    Span,
    Table,
    check_fits,
    region_span,
)
from deltapass.schedule.weights import weights_content, weights_from

ROW_COUNT: Final = "After the region stands a number of blocks, from 1 to 'blocks'"
FOLDED: Final = 3  # equal parts of a table in a row that are counted, not repeated
TABLE_KEYS: Final = ("table", "blocks", "predictor", "weights", "made_for")
ROW_FORM: Final = (
    "Write 'refresh', 'start:stop' such as '7:28', or 'region:count' as 'deep:21'; "
    "'feature' or 'cross-attention' and a space may stand before either"
)


def table_rows(table: Table) -> list[str]:
    """One text a step, as in a schedule file: 'refresh', 'start:stop' or 'feature start:stop'."""
    return ["refresh" if row is None else _span_text(row) for row in table]


def _span_text(span: Span) -> str:
    kept = "" if span.keeps == "delta" else f"{span.keeps} "
    return f"{kept}{span.start}:{span.stop}"


def row_text(row: Span | None, blocks: int) -> str:
    """One word: R refreshes; d21, s21 skip the 21 deepest or shallowest blocks; 4:25 any other.

    An f before it: by their feature. An x: they run, without cross-attention.
    """
    if row is None:
        return "R"
    if row.stop == blocks:
        where = f"d{len(row)}"
    else:
        where = f"s{len(row)}" if row.start == 0 else f"{row.start}:{row.stop}"
    return {"delta": "", "feature": "f", "cross-attention": "x"}[row.keeps] + where


def table_text(table: Table, blocks: int) -> str:
    """One line for the whole table, a word a step; what repeats thrice or more is counted.

    Example:
        >>> table_text(Schedule(boundary=2).table(6, 28), 28)
        'R d4 R s4 R s4'
        >>> table_text(Schedule().table(20, 28), 28)
        '(R d21)x6 (R s21)x4'
    """
    # A refresh and the cached steps after it are what repeats.
    rounds: list[list[str]] = []
    for row in table:
        if row is None or not rounds:
            rounds.append([])
        rounds[-1].append(row_text(row, blocks))
    return " ".join(_counted([" ".join(_counted(words)) for words in rounds]))


def _counted(parts: Sequence[str]) -> Iterator[str]:
    """Parts in order, with FOLDED or more equal ones in a row as one: `(R d21)x6`."""
    for part, run in itertools.groupby(parts):
        times = len(list(run))
        if times < FOLDED:
            yield from [part] * times
        else:
            yield f"({part})x{times}" if " " in part else f"{part}x{times}"


def load_schedule(path: str | os.PathLike[str]) -> AnySchedule:
    """Read a schedule from a .json or .toml file.

    The file holds either the fields of `Schedule` and perhaps a name, {"schedule": "reversed",
    "interval": 3}, or a table, {"table": ["refresh", "deep:21", "0:21"], "blocks": 28}, where
    "blocks" is needed for regions only, and "feature deep:21" keeps the feature, or
    "cross-attention 0:28" what that gives. With a table may
    stand "predictor", the name of one; "weights", an entry a step: null, or {"shared": [[w0, w1]]}
    with a vector for all streams or one a stream, newest delta first, and perhaps "branches", the
    same by name; and "made_for".

    Raises:
        ScheduleFileError: If the file cannot be read, or a key or row in it has no meaning.
    """
    try:
        return schedule_from(_read(Path(path)))
    except ScheduleError as error:
        raise ScheduleFileError(os.fspath(path), f"{error.fact}. {error.remedy}") from error
    except (OSError, ValueError) as error:
        raise ScheduleFileError(os.fspath(path), f"cannot be read: {error}") from error


def save_schedule(schedule: AnySchedule | Table, path: str | os.PathLike[str]) -> None:
    """Write a schedule, or a table, to a .json file that `load_schedule` reads back equal.

    Raises:
        ScheduleFileError: If the name does not end in .json or the file cannot be written.
    """
    if Path(path).suffix != ".json":
        raise ScheduleFileError(os.fspath(path), "schedules are written as .json only")
    try:
        content = schedule_content(schedule)
        Path(path).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    except OSError as error:
        raise ScheduleFileError(os.fspath(path), f"cannot be written: {error}") from error


def schedule_content(schedule: AnySchedule | Table) -> dict[str, Any]:
    """A schedule, or a table, as plain data that `schedule_from` reads back equal."""
    if isinstance(schedule, Schedule):
        values = {name: getattr(schedule, name) for name in FIELD_NAMES}
        return {name: value for name, value in values.items() if value is not None}
    given = schedule if isinstance(schedule, ExplicitSchedule) else ExplicitSchedule(schedule)
    content: dict[str, Any] = {"table": table_rows(given.rows)}
    if given.predictor != REUSE.name:
        content["predictor"] = given.predictor
    if given.weights:
        content["weights"] = weights_content(given.weights)
    if given.made_for is not None:
        content["made_for"] = made_for_content(given.made_for)
    return content


def schedule_from(content: Mapping[str, Any]) -> AnySchedule:
    """The schedule that plain data describes; see `load_schedule`.

    Raises:
        ScheduleError: If a key or row in it has no meaning.
    """
    if "table" in content:
        return _explicit(content)
    fields = dict(content)
    return named_schedule(fields.pop("schedule", "delta-dit"), **fields)


def _read(path: Path) -> dict[str, Any]:
    if path.suffix not in (".json", ".toml"):
        raise ScheduleError(f"its name ends in {path.suffix!r}", "Use .json or .toml")
    text = path.read_text(encoding="utf-8")
    content = json.loads(text) if path.suffix == ".json" else tomllib.loads(text)
    if not isinstance(content, dict):
        raise ScheduleError(f"it holds a {type(content).__name__}", "Give an object with keys")
    return content


def _explicit(content: Mapping[str, Any]) -> ExplicitSchedule:
    for key in content:
        if key not in TABLE_KEYS:
            raise unknown_name("key", key, TABLE_KEYS)
    table, blocks = content["table"], content.get("blocks")
    if not isinstance(table, list):
        raise ScheduleError(f"table is {table!r}", "Give a list with one row a step")
    if blocks is not None:
        check_count("blocks", blocks, 1)
    made_for = content.get("made_for")
    return ExplicitSchedule(
        rows=tuple(_row(step, text, blocks) for step, text in enumerate(table)),
        predictor=content.get("predictor", REUSE.name),
        weights=weights_from(content.get("weights", [])),
        made_for=None if made_for is None else made_for_from(made_for),
    )


def _row(step: int, text: object, blocks: int | None) -> Span | None:
    if text == "refresh":
        return None
    form = r"(?:(feature|cross-attention) )?(deep|shallow|middle|\d+):(\d+)"
    match = re.fullmatch(form, str(text), re.ASCII)
    if match is None:
        raise ScheduleError(f"row {step} is {text!r}", ROW_FORM)
    keeps: Keeps = next((known for known in KEEPS if known == match[1]), "delta")
    head, count = match[2], int(match[3])
    region = next((region for region in REGIONS if region == head), None)
    if region is not None and blocks is None:
        raise ScheduleError(f"row {step} is {text!r} but there is no 'blocks'", "Add that key")
    if region is not None and not 1 <= count <= (blocks or 0):
        raise ScheduleError(f"row {step} is {text!r} and blocks is {blocks}", ROW_COUNT)
    try:
        if region is None:
            span = Span(int(head), count, keeps)
        else:
            span = region_span(region, count, blocks or 0, keeps)
        check_fits((span,), span.stop if blocks is None else blocks)
    except ScheduleError as error:
        raise ScheduleError(f"row {step} is {text!r}: {error.fact}", error.remedy) from error
    return span
