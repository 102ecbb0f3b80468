"""The page's text and the files beside it; test_browser.py uses it as people do."""

from __future__ import annotations

import base64
import csv
import hashlib
import io
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import msgspec
import pytest
from page_case import ATTACK, made_up_record, made_up_records, speed_record

from deltapass.bench.metrics.intervals import doubted
from deltapass.bench.page.beside import as_csv
from deltapass.bench.page.figures import write_figures
from deltapass.bench.page.sections import anchors_of, section_of, sections_of
from deltapass.bench.page.wording import NOTHING, bytes_of, large, number, plainly, seconds
from deltapass.bench.page.write import render, write_page
from deltapass.bench.record import Figure, Interval, Record, Series


class Outline(HTMLParser):
    """Elements with their attributes, and the text of each kind."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: dict[str, list[str]] = {}
        self._open: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        self._open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        self._open.pop()

    def handle_data(self, data: str) -> None:
        if self._open:
            self.texts.setdefault(self._open[-1], []).append(data)

    def of(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for kind, attributes in self.elements if kind == tag]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("page")


@pytest.fixture(scope="module")
def records(folder: Path) -> list[Record]:
    return [*made_up_records(folder), speed_record()]


@pytest.fixture(scope="module")
def page(records: list[Record], folder: Path) -> str:
    return render(sections_of(records, [folder] * len(records)))


def data_in(page: str) -> list[dict[str, Any]]:
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.DOTALL)
    assert found
    return json.loads(found[1])  # type: ignore[no-any-return]


def text_of(page: str) -> str:
    pieces = Outline(page).texts
    return " ".join(
        " ".join(each) for kind, each in pieces.items() if kind not in ("script", "style")
    )


# ---- one file, safe ------------------------------------------------------------------------------


def test_nothing_is_loaded_from_elsewhere(page: str) -> None:
    outline = Outline(page)
    for _, attributes in outline.elements:
        for name in ("src", "href", "srcset", "action", "data"):
            value = attributes.get(name) or ""
            assert not re.match(r"(?:https?:|//|file:)", value), value
    assert not outline.of("iframe") and all("src" not in each for each in outline.of("script"))
    assert "@import" not in page and "url(http" not in page


def test_only_its_own_script_and_style_may_run(page: str) -> None:
    (policy,) = (
        each["content"] or ""
        for each in Outline(page).of("meta")
        if each.get("http-equiv") == "Content-Security-Policy"
    )
    assert "default-src 'none'" in policy and "unsafe" not in policy
    for tag, kind in (('script type="module"', "script-src"), ("style", "style-src")):
        inner = re.search(rf"<{tag}>(.*?)</{tag.split()[0]}>", page, re.DOTALL)
        assert inner
        digest = base64.b64encode(hashlib.sha256(inner[1].encode()).digest()).decode()
        assert f"{kind} 'sha256-{digest}'" in policy


def test_texts_of_users_stay_texts(page: str) -> None:
    outline = Outline(page)
    assert all(attributes.get("onerror") is None for _, attributes in outline.elements)
    assert not outline.of("img")
    assert len(outline.of("script")) == 2
    # Unchanged where it is shown, and within the data.
    assert ATTACK in " ".join(outline.texts["h4"] + outline.texts["b"] + outline.texts["th"])
    assert data_in(page)[1]["pictures"]["prompts"][0] == ATTACK
    assert "{{ 7 * 7 }}" in page and ">49<" not in page


def test_no_style_stands_in_an_attribute_where_the_policy_forbids_it(page: str) -> None:
    assert all("style" not in attributes for _, attributes in Outline(page).elements)


def test_identifiers_are_unique_and_every_inner_link_has_its_end(page: str) -> None:
    outline = Outline(page)
    names = [each["id"] for _, each in outline.elements if "id" in each]
    assert len(names) == len(set(names))
    links = [each.get("href") or "" for each in outline.of("a")]
    inner = {link[1:] for link in links if link.startswith("#")}
    assert inner <= set(names)
    labels = [each.get("aria-labelledby") or "" for _, each in outline.elements]
    assert {name for label in labels for name in label.split()} <= set(names)


# ---- what it says --------------------------------------------------------------------------------


def test_why_there_is_no_verdict_stands_beside_the_difference(folder: Path) -> None:
    record = made_up_record(folder)
    against = {
        other: {name: doubted(pair, 16) for name, pair in pairs.items()}
        for other, pairs in record.rows[5].against.items()
    }
    row = msgspec.structs.replace(record.rows[5], against=against)
    rows = (*record.rows[:5], row, *record.rows[6:])
    record = msgspec.structs.replace(record, rows=rows)
    page = render(sections_of([record], [folder]))
    assert text_of(page).count("16 images; a verdict takes 30") >= 3  # advice, table, differences
    states = data_in(page)[0]["rows"][5]["against"]["plain-10"]["psnr"]
    assert states[0] == "inconclusive" and "a verdict takes 30" in states[1]
    assert "16 images; a verdict takes 30" in as_csv([record])


def test_every_row_says_how_it_is_measured_again(page: str, records: list[Record]) -> None:
    text = text_of(page)
    for record in records:
        for digest in (
            record.commit, record.suite_sha256, record.environment_sha256,
            record.manifest.sha256, record.model.digest,
        ):  # fmt: skip
            assert text.count(digest) >= len(record.rows)
        for row in record.rows:
            assert row.replay in text
    said = "deltapass 0.1.0, python 3.11.7, torch 2.13.0, diffusers 0.42.1"
    assert text.count(said) == sum(len(record.rows) for record in records)
    assert "An example of a processor" in text


def test_every_difference_is_there_with_what_could_have_been_seen(
    page: str, records: list[Record]
) -> None:
    text = text_of(page)
    pair = records[0].rows[6].against["plain-10"]["psnr"]
    assert f"+{pair.difference.mean:.1f} (+{pair.difference.low:.1f} to" in text
    count = sum(
        len(pairs) for record in records for row in record.rows for pairs in row.against.values()
    )
    assert count > 50 and page.count('<tr><th scope="row">') >= count


def test_failures_and_warnings_are_said(page: str, records: list[Record]) -> None:
    text = text_of(page)
    for record in records:
        assert all(warning in text for warning in record.warnings)
        assert all(row.failure in text for row in record.rows if row.failure)
    assert "Files were changed since the commit" in text


def test_missing_images_are_a_warning(tmp_path: Path) -> None:
    record = made_up_record(tmp_path)
    lost = record.rows[3].images[:5]
    for name in lost:
        (tmp_path / name).unlink()
    section = section_of("x", record, tmp_path)
    assert any("5 images of the record" in text and lost[0] in text for text in section.warnings)


def test_states_have_words_and_marks(page: str) -> None:
    for verdict, mark in (("better", "▲"), ("worse", "▼"), ("same", "="), ("inconclusive", "?")):
        assert f'<span class="chip {verdict}"><i aria-hidden="true">{mark}</i> {verdict}' in page


def test_the_papers_table_is_labelled_as_the_papers(page: str) -> None:
    for title, label in (
        ("Table 1 of the paper", "the paper's figures, not ours"),
        ("Garments, 28 blocks", "measured here"),
    ):
        assert re.search(rf"<h4[^>]*>{title} <span class=\"tag[^\"]*\">{label}</span></h4>", page)
    assert "39.989" in text_of(page)


def test_neighbouring_speed_ups_of_one_advice_are_one_cell(records: list[Record]) -> None:
    (section,) = sections_of(records[:1], [Path()])
    found = [(tiers, advice and advice.row) for tiers, advice in section.glance]
    assert found == [((1.25, 1.5), "tuned-1.6x"), ((1.75, 2.0), "tuned-2x"), ((3.0,), None)]


def test_random_weights_give_no_advice(records: list[Record], folder: Path) -> None:
    measured = msgspec.structs.replace(
        records[0], model=msgspec.structs.replace(records[0].model, random_weights=True)
    )
    section = section_of("x", measured, folder)
    assert section.glance == () and section.glance_measure is None
    assert "use" not in dict(section.contents) and "pareto" not in dict(section.contents)
    assert "Random weights: speed alone" in text_of(render([section]))


def test_a_record_of_nothing_but_its_reference_renders(records: list[Record], folder: Path) -> None:
    bare = msgspec.structs.replace(
        records[0], rows=records[0].rows[:1], figures=(), paper=None, warnings=(),
        suite={}, environment={}, noise=None, harness_seconds=None, commit="abc",
    )  # fmt: skip
    page = render([section_of("bare", bare, folder)])
    assert "20 plain steps" in text_of(page)
    assert dict(section_of("bare", bare, folder).contents).keys() == {
        "methods",
        "images",
        "again",
    } - {"images"}


def test_values_that_are_not_finite_do_not_break_it(records: list[Record], folder: Path) -> None:
    infinite = Interval(mean=float("inf"), low=1.0, high=float("nan"))
    row = msgspec.structs.replace(records[0].rows[5], means={"psnr": infinite})
    record = msgspec.structs.replace(records[0], rows=(*records[0].rows[:5], row))
    page = render([section_of("x", record, folder)])
    assert "∞" in text_of(page)
    assert data_in(page)[0]["rows"][5]["values"]["psnr"] is None


def test_data_are_in_the_units_that_are_shown(page: str, records: list[Record]) -> None:
    row = records[0].rows[6]
    shown = data_in(page)[0]["rows"][6]
    assert shown["values"]["right"][0] == pytest.approx(row.means["right"].mean * 100)
    assert shown["costs"]["end_to_end"][0] == pytest.approx(0.497)
    assert shown["speedups"]["end_to_end"] == pytest.approx(1 / 0.497)


# ---- beside it -----------------------------------------------------------------------------------


def test_the_whole_folder(tmp_path: Path) -> None:
    record = made_up_record(tmp_path / "run")
    path = write_page([record], tmp_path / "page", [tmp_path / "run"])
    assert path == tmp_path / "page" / "index.html"
    assert msgspec.json.decode((path.parent / "records.json").read_bytes(), type=list[Record]) == [
        record
    ]
    (anchor,) = anchors_of([record])
    names = {each.name for each in (path.parent / "figures").iterdir()}
    wanted = ("pareto-psnr", "pareto-right", "pareto-kid", "figure-cosine", "figure-cosine-map")
    assert names == {f"{anchor}-{name}.{suffix}" for name in wanted for suffix in ("svg", "png")}
    assert "data:image/png;base64," in path.read_text(encoding="utf-8")


def test_csv_has_a_line_a_row_in_raw_units(records: list[Record]) -> None:
    lines = list(csv.DictReader(io.StringIO(as_csv(records))))
    assert len(lines) == sum(len(record.rows) for record in records)
    tuned = next(line for line in lines if line["row"] == "tuned-2x")
    assert float(tuned["right_mean"]) == records[0].rows[6].means["right"].mean
    assert tuned["psnr_verdict"] == "better" and tuned["replay"] == records[0].rows[6].replay
    assert float(tuned["kid_difference"]) < 0
    failed = next(line for line in lines if line["row"] == "broken")
    assert failed["end_to_end_seconds"] == "" and "breaks the graph" in failed["failure"]


def test_csv_holds_no_formulas(records: list[Record]) -> None:
    row = msgspec.structs.replace(records[0].rows[0], label="=1+1")
    record = msgspec.structs.replace(records[0], rows=(row,))
    (line,) = csv.DictReader(io.StringIO(as_csv([record])))
    assert line["label"] == "'=1+1"


def test_equal_records_give_equal_figures_whatever_texts_they_hold(tmp_path: Path) -> None:
    curve = Series(name="$a_{", x=(0.0, 1.0), y=(0.0, 1.0))
    figure = Figure(
        name="../up $", title="$\\frac{", x_title="_x", y_title="<y>", series=(curve, curve)
    )
    record = msgspec.structs.replace(speed_record(), figures=(figure,))
    first, second = (write_figures([record], ["x"], tmp_path / name) for name in "ab")
    assert [path.name for path in first] == ["x-figure-up.svg", "x-figure-up.png"]
    assert [path.read_bytes() for path in first] == [path.read_bytes() for path in second]
    assert "<y>" not in first[0].read_text()


def test_records_of_one_suite_and_model_have_anchors_of_their_own() -> None:
    record = speed_record()
    assert anchors_of([record, record, record]) == [
        "speed-large", "speed-large--2", "speed-large--3",
    ]  # fmt: skip


# ---- numbers as people read them -----------------------------------------------------------------


def test_numbers_in_words() -> None:
    assert [number(value, 1) for value in (1.25, -0.04, None, float("inf"), -3)] == [
        "1.2", "0.0", NOTHING, "∞", "\N{MINUS SIGN}3.0",
    ]  # fmt: skip
    assert number(-0.001, 2, "+") == "+0.00"
    assert [seconds(value) for value in (250.0, 2.5, 0.0125, 2e-5, None)] == [
        "250 s", "2.50 s", "12.5 ms", "20 µs", NOTHING,
    ]  # fmt: skip
    assert [bytes_of(value) for value in (12, 2048, 3 * 2**30)] == ["12 B", "2 KiB", "3 GiB"]
    assert [large(value) for value in (85.65e12, 1234, 0.5)] == ["85.7 T", "1.23 k", "0.5"]
    assert plainly([1, 2.5, "x"]) == "1, 2.5, x"
    assert plainly(True) == "yes"
    assert plainly([{"a": 1}]) == '[{"a": 1}]'
