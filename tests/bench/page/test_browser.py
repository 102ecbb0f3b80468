"""The page as people use it, in Chromium: by pointer, by keys, on a phone, in the dark, on paper.

Skipped where no Chromium and no driver of its are installed.
"""

from __future__ import annotations

import base64
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from page_case import made_up_records, speed_record

from deltapass.bench.page.sections import sections_of
from deltapass.bench.page.write import render

webdriver = pytest.importorskip("selenium.webdriver")
from selenium.webdriver.common.action_chains import ActionChains  # noqa: E402
from selenium.webdriver.common.keys import Keys  # noqa: E402
from selenium.webdriver.support.ui import Select  # noqa: E402

BROWSER = (
    shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
)
DRIVER = shutil.which("chromedriver")
pytestmark = pytest.mark.skipif(
    BROWSER is None or DRIVER is None, reason="no Chromium with its chromedriver is installed"
)

FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
)  # fmt: skip
DESKTOP, PHONE, PAPER = (1280, 900), (375, 740), (703, 1000)
# This axe is older than <div>s in a <dl>; colours are measured by a test of their own.
AXE = {"rules": {"dlitem": {"enabled": False}, "color-contrast": {"enabled": False}}}
ONE_RECORD = "document.querySelectorAll('.record ~ .record').forEach(each => each.remove())"


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("page")
    records = [*made_up_records(folder), speed_record()]
    path = folder / "index.html"
    path.write_text(render(sections_of(records, [folder] * 3), ["figures/a.svg"]), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def started(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    options = webdriver.ChromeOptions()
    options.binary_location = BROWSER
    for flag in (*FLAGS, f"--user-data-dir={tmp_path_factory.mktemp('browser')}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
    driver.set_script_timeout(30)
    yield driver
    driver.quit()


@pytest.fixture
def browser(started: Any, page: Path) -> Iterator[Any]:
    """The page on a desktop, freshly loaded; whatever it complains of fails the test."""
    dress(started, DESKTOP)
    started.get(page.as_uri())
    assert started.execute_script("return document.documentElement.dataset.ready") == "yes"
    yield started
    assert [entry["message"] for entry in started.get_log("browser")] == []


def dress(driver: Any, size: tuple[int, int], *, scheme: str = "light", media: str = "") -> None:
    """A screen's size, its colours, and whether it is paper."""
    metrics = {"width": size[0], "height": size[1], "deviceScaleFactor": 1, "mobile": size == PHONE}
    driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    features = [
        {"name": "prefers-color-scheme", "value": scheme},
        {"name": "prefers-reduced-motion", "value": "reduce"},
    ]
    driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": media, "features": features})


def one(driver: Any, selector: str) -> Any:
    return driver.find_element("css selector", selector)


def many(driver: Any, selector: str) -> list[Any]:
    return driver.find_elements("css selector", selector)  # type: ignore[no-any-return]


def press(driver: Any, *keys: str) -> None:
    ActionChains(driver).send_keys(*keys).perform()


def focus(driver: Any, element: Any) -> None:
    driver.execute_script(
        "arguments[0].scrollIntoView({block: 'center'}); arguments[0].focus()", element
    )


def click(driver: Any, element: Any) -> None:
    driver.execute_script("arguments[0].scrollIntoView({block: 'center'})", element)
    element.click()


RECORD = ".record[data-index='0']"


# ---- the chart -----------------------------------------------------------------------------------


def points(driver: Any) -> dict[str, tuple[float, float]]:
    """Where each method is drawn."""
    found = driver.execute_script(
        "return [...document.querySelectorAll(arguments[0])].map(point => ["
        " point.dataset.row, +point.querySelector('.halo').getAttribute('cx'),"
        " +point.querySelector('.halo').getAttribute('cy')])",
        f"{RECORD} .pareto .point",
    )
    return {name: (x, y) for name, x, y in found}


def test_quick_is_left_and_good_is_up_or_down_as_the_measure_says(browser: Any) -> None:
    by_psnr = points(browser)
    assert by_psnr["tuned-2x"][0] < by_psnr["tuned-1.6x"][0]
    assert by_psnr["tuned-1.6x"][1] < by_psnr["delta-dit"][1] < by_psnr["shallow"][1]
    assert "broken" not in by_psnr
    assert len(many(browser, f"{RECORD} .pareto polyline.curve")) == 1
    assert len(many(browser, f"{RECORD} .pareto .plot path.front")) == 1


def test_another_measure_redraws_the_chart_and_the_advice(browser: Any) -> None:
    before = points(browser)
    Select(one(browser, f"{RECORD} select.measure")).select_by_value("kid")
    after = points(browser)
    assert after != before
    assert after["tuned-1.6x"][1] > after["shallow"][1]  # less is better: the best are below
    assert "plain-20" in after and "plain-20" not in before  # PSNR to itself is no number
    shown = [panel for panel in many(browser, f"{RECORD} .panel") if panel.is_displayed()]
    assert [panel.get_attribute("data-measure") for panel in shown] == ["kid"]
    assert "↙ best corner" in one(browser, f"{RECORD} .pareto").text


def test_another_kind_of_time_moves_points_sideways(browser: Any) -> None:
    before = points(browser)
    Select(one(browser, f"{RECORD} select.cost")).select_by_value("step")
    after = points(browser)
    # Fewer steps do not quicken one call.
    assert after["plain-10"][0] > after["tuned-1.6x"][0]
    assert before["plain-10"][0] < before["tuned-1.6x"][0]


def test_arrows_go_from_point_to_point_and_enter_marks_a_method(browser: Any) -> None:
    in_order = [name for name, _ in sorted(points(browser).items(), key=lambda pair: pair[1][0])]
    focus(browser, one(browser, f"{RECORD} .pareto .point"))
    press(browser, Keys.ARROW_RIGHT, Keys.ARROW_RIGHT)
    here = browser.switch_to.active_element
    assert here.get_attribute("data-row") == in_order[2]
    assert one(browser, "#tip").is_displayed()
    assert here.get_attribute("aria-label").startswith(one(browser, "#tip").text.splitlines()[0])
    press(browser, Keys.ENTER)
    assert here.get_attribute("aria-pressed") == "true"
    picked = many(browser, f"{RECORD} tr.picked")
    assert [row.get_attribute("data-row") for row in picked] == [in_order[2]]
    press(browser, Keys.ESCAPE)
    assert not one(browser, "#tip").is_displayed()


# ---- the table -----------------------------------------------------------------------------------


def order(driver: Any) -> list[str]:
    rows = many(driver, f"{RECORD} table.rows tbody tr")
    return [row.get_attribute("data-row") for row in rows]


def head(driver: Any, title: str) -> Any:
    heads = many(driver, f"{RECORD} table.rows thead button")
    return next(each for each in heads if each.get_attribute("textContent").startswith(title))


def test_heads_sort_the_best_first_then_the_other_way(browser: Any) -> None:
    first = order(browser)
    click(browser, head(browser, "PSNR"))
    best = order(browser)
    assert best != first and best[:2] == ["tuned-1.6x", "plain-16"]
    assert best[-1] in ("broken", "plain-20")  # without a value: last
    cell = one(browser, f"{RECORD} th[aria-sort]")
    assert cell.get_attribute("aria-sort") == "descending"
    click(browser, head(browser, "PSNR"))
    worst = order(browser)
    assert worst[0] == "plain-8" and worst[-1] in ("broken", "plain-20")
    click(browser, head(browser, "KID"))
    assert order(browser)[0] == "plain-20"  # less is better
    assert len(many(browser, f"{RECORD} th[aria-sort]")) == 1


def test_heads_sort_by_keys_and_say_so(browser: Any) -> None:
    focus(browser, head(browser, "Steps"))
    press(browser, Keys.SPACE)
    assert order(browser)[:4] == ["plain-8", "plain-10", "plain-13", "plain-16"]
    press(browser, Keys.ENTER)
    assert order(browser)[-1] == "plain-8"
    said = one(browser, f"{RECORD} .methods [role=status]").get_attribute("textContent")
    assert said == "Sorted by Steps, descending"
    click(browser, head(browser, "Method"))
    names = [one(row, "th").text for row in many(browser, f"{RECORD} tbody tr[data-row]")]
    assert names[0].startswith("8 plain steps") and names[1].startswith("10 plain steps")


def test_groups_of_columns_come_and_go(browser: Any) -> None:
    memory = head(browser, "Peak memory")
    assert not memory.is_displayed()
    click(browser, one(browser, f"{RECORD} .methods input[value=work]"))
    assert memory.is_displayed()
    click(browser, one(browser, f"{RECORD} .methods input[value=quality]"))
    assert not head(browser, "PSNR").is_displayed()


def test_states_are_against_what_is_chosen(browser: Any) -> None:
    state = f"{RECORD} tr[data-row='tuned-2x'] td[data-measure=psnr] .state"
    assert "better" in one(browser, state).text
    Select(one(browser, f"{RECORD} select.against")).select_by_value("plain-20")
    assert one(browser, state).text == ""  # PSNR to itself is no number
    right = one(browser, f"{RECORD} tr[data-row='tuned-2x'] td[data-measure=right] .state")
    assert "inconclusive" in right.text or "same" in right.text
    Select(one(browser, f"{RECORD} select.against")).select_by_value("")
    assert "better" in one(browser, state).text


# ---- images --------------------------------------------------------------------------------------


def mode(driver: Any, name: str) -> None:
    click(driver, one(driver, f"{RECORD} [data-mode={name}]"))


def style(driver: Any, selector: str, name: str) -> str:
    script = "return getComputedStyle(document.querySelector(arguments[0]))[arguments[1]]"
    return str(driver.execute_script(script, selector, name))


def test_the_worst_pair_comes_first(browser: Any) -> None:
    shown = [float(each.text.split()[0]) for each in many(browser, f"{RECORD} .thumbs button")]
    assert len(shown) > 5 and shown == sorted(shown)
    assert f"PSNR {shown[0]} dB" in one(browser, f"{RECORD} .prompt").text
    images = many(browser, f"{RECORD} .stage img")
    assert len(images) == 2
    assert all("seed 1000" in image.get_attribute("alt") for image in images)


def test_the_slider_moves_by_keys_and_by_pointer(browser: Any) -> None:
    mode(browser, "slide")
    top = f"{RECORD} .sheet:nth-of-type(2)"
    assert "50%" in style(browser, top, "clipPath")
    focus(browser, one(browser, f"{RECORD} .amount input"))
    press(browser, *[Keys.ARROW_RIGHT] * 6)
    assert "53%" in style(browser, top, "clipPath")
    assert style(browser, f"{RECORD} .divide", "left") != "0px"
    stage = one(browser, f"{RECORD} .stage")
    wide = stage.size["width"]
    drag = ActionChains(browser).move_to_element(stage).click_and_hold()
    drag.move_by_offset(int(-wide / 4), 0).release().perform()
    share = float(re.search(r"([\d.]+)%", style(browser, top, "clipPath"))[1])  # type: ignore[index]
    assert share == pytest.approx(25, abs=1)
    shown = one(browser, f"{RECORD} .amount input").get_attribute("value")
    assert float(shown) == pytest.approx(share, abs=0.6)


def test_onion_skin_switch_and_difference(browser: Any) -> None:
    top = f"{RECORD} .sheet:nth-of-type(2)"
    mode(browser, "onion")
    focus(browser, one(browser, f"{RECORD} .amount input"))
    press(browser, Keys.HOME)
    assert float(style(browser, top, "opacity")) == 0
    mode(browser, "switch")
    assert style(browser, top, "visibility") == "visible"
    focus(browser, one(browser, f"{RECORD} .stage"))
    press(browser, Keys.SPACE)
    assert style(browser, top, "visibility") == "hidden"
    click(browser, one(browser, f"{RECORD} .flip"))
    assert style(browser, top, "visibility") == "visible"
    mode(browser, "difference")
    assert brightness(browser) > 0
    before = brightness(browser)
    focus(browser, one(browser, f"{RECORD} .amount input"))
    press(browser, Keys.END)
    assert brightness(browser) > before


BRIGHTNESS = """
const [selector, done] = arguments;
const canvas = document.querySelector(selector);
const look = () => {
  const { data } = canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height);
  let sum = 0, drawn = 0;
  data.forEach((value, k) => { if (k % 4 === 3) drawn += value; else sum += value; });
  if (drawn) done(sum / data.length); else setTimeout(look, 20);
};
look();
"""


def brightness(driver: Any) -> float:
    """The mean of the difference's pixels, once it is drawn."""
    return float(driver.execute_async_script(BRIGHTNESS, f"{RECORD} canvas"))


def test_one_zoom_holds_for_all_panes(browser: Any) -> None:
    click(browser, one(browser, f"{RECORD} [aria-label='Zoom in']"))
    transforms = {
        style_of(browser, image)
        for image in many(browser, f"{RECORD} .stage img, {RECORD} .stage canvas")
    }
    assert len(transforms) == 1 and transforms != {"none"}
    focus(browser, one(browser, f"{RECORD} .stage"))
    press(browser, "+", Keys.ARROW_LEFT)
    (moved,) = {style_of(browser, image) for image in many(browser, f"{RECORD} .stage img")}
    assert {moved} != transforms
    mode(browser, "all")
    panes = many(browser, f"{RECORD} .stage img")
    assert len(panes) > 8
    assert {style_of(browser, image)[:10] for image in panes} == {moved[:10]}
    focus(browser, one(browser, f"{RECORD} .stage"))
    press(browser, "0")
    assert {style_of(browser, image) for image in panes} == {"matrix(1, 0, 0, 1, 0, 0)"}


def style_of(driver: Any, element: Any) -> str:
    return str(driver.execute_script("return getComputedStyle(arguments[0]).transform", element))


def test_another_method_and_another_seed(browser: Any) -> None:
    Select(one(browser, f"{RECORD} select.other")).select_by_value("deep")
    assert "Δ-Cache deep" in one(browser, f"{RECORD} .panes").text
    second = many(browser, f"{RECORD} .thumbs button")[1]
    focus(browser, second)
    press(browser, Keys.ENTER)
    assert browser.switch_to.active_element.get_attribute("aria-pressed") == "true"
    worst, shown = many(browser, f"{RECORD} .thumbs button")[:2]
    assert worst.get_attribute("aria-pressed") == "false"
    assert shown.text in one(browser, f"{RECORD} .prompt").text
    Select(one(browser, f"{RECORD} select.base")).select_by_value("plain-13")
    assert "13 plain steps" in one(browser, f"{RECORD} .panes").text


# ---- schedules and figures -----------------------------------------------------------------------


def test_a_strip_shows_every_step_and_tells_it_by_keys(browser: Any) -> None:
    strip = one(browser, f"{RECORD} .strip svg")
    assert len(many(strip, ".ran")) == 20 and len(many(strip, ".skipped")) == 13
    assert len(many(strip, ".error")) == 20
    focus(browser, strip)
    press(browser, Keys.ARROW_RIGHT)
    said = strip.get_attribute("aria-valuetext")
    assert said.startswith("step 1, blocks 2 to 20 skipped, error ")
    assert one(browser, "#tip").text == said
    press(browser, Keys.END)
    assert strip.get_attribute("aria-valuenow") == "19"


def test_figures_have_their_numbers(browser: Any) -> None:
    curves, grid = many(browser, f"{RECORD} [data-figure]")
    assert len(many(curves, "polyline.line")) == 4 and len(many(grid, "image.map")) == 1
    click(browser, one(grid, "summary"))
    assert len(many(grid, "tbody tr")) == 28
    assert len(many(grid, "thead th")) == 21


# ---- everywhere ----------------------------------------------------------------------------------


def test_hostile_texts_do_nothing(browser: Any) -> None:
    assert browser.title.startswith("Table 1")
    assert "</script><img src=x" in one(browser, ".record[data-index='1'] table.rows").text
    assert not many(browser, "img[src='x']")


def test_axe_finds_no_violation(browser: Any) -> None:
    axe = pytest.importorskip("axe_selenium_python").Axe(browser)
    browser.execute_script("document.querySelector('.again details').open = true")
    axe.inject()
    where = {"include": [[".top"], [".toc"], [".glance"], [RECORD], [".reading"]]}
    run = "axe.run(arguments[0], arguments[1]).then(arguments[2])"
    found = browser.execute_async_script(run, where, AXE)
    assert len(found["passes"]) > 25
    problems = [(each["id"], each["nodes"][0]["html"]) for each in found["violations"]]
    assert problems == []


# Every text that is seen, against the nearest background that is not clear.
CONTRAST = """
const context = new OffscreenCanvas(1, 1).getContext('2d', { willReadFrequently: true });
const parsed = (color) => {
  context.clearRect(0, 0, 1, 1);
  context.fillStyle = color;
  context.fillRect(0, 0, 1, 1);
  return [...context.getImageData(0, 0, 1, 1).data];
};
const linear = (v) => (v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
const light = ([r, g, b]) => (
  0.2126 * linear(r / 255) + 0.7152 * linear(g / 255) + 0.0722 * linear(b / 255));
const behind = (element) => {
  for (let each = element; each; each = each.parentElement) {
    const found = parsed(getComputedStyle(each).backgroundColor);
    if (found[3] > 180) return found;
  }
  return [255, 255, 255];
};
const worst = [];
let count = 0;
for (const element of document.querySelectorAll('body *')) {
  const own = [...element.childNodes].some((node) => node.nodeType === 3 && node.data.trim());
  if (!own || !element.checkVisibility({ visibilityProperty: true })) continue;
  if (element.closest('script, style, .unseen, :disabled')) continue;
  const style = getComputedStyle(element);
  const color = parsed(element instanceof SVGElement ? style.fill : style.color);
  const [a, b] = [light(color), light(behind(element))].sort((x, y) => y - x);
  const ratio = (a + 0.05) / (b + 0.05);
  if (ratio < 4.5) worst.push([element.outerHTML.slice(0, 90), ratio]);
  count += 1;
}
return [count, worst];
"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_text_stands_out(browser: Any, scheme: str) -> None:
    dress(browser, DESKTOP, scheme=scheme)
    count, weak = browser.execute_script(CONTRAST)
    assert count > 500
    assert weak == []


def test_dark_follows_the_system_and_the_switch_wins(browser: Any, page: Path) -> None:
    light = style(browser, "body", "backgroundColor")
    dress(browser, DESKTOP, scheme="dark")
    dark = style(browser, "body", "backgroundColor")
    assert dark != light
    choose = "document.querySelector('.theme input[value=' + arguments[0] + ']').click()"
    browser.execute_script(choose, "light")
    assert style(browser, "body", "backgroundColor") == light
    browser.refresh()
    assert style(browser, "body", "backgroundColor") == light  # it is remembered
    browser.execute_script(choose, "auto")
    assert style(browser, "body", "backgroundColor") == dark


# What reaches past the right edge, other than within a part that scrolls by itself.
BEYOND = """
const apart = '.scroll, .thumbs, pre, svg, .stage, .unseen';
return [...document.querySelectorAll('main *')]
  .filter((each) => !each.closest(apart) && each.checkVisibility())
  .filter((each) => each.getBoundingClientRect().right > innerWidth + 1)
  .map((each) => each.outerHTML.slice(0, 90));
"""


def test_a_phone_scrolls_down_only(browser: Any) -> None:
    dress(browser, PHONE)
    assert browser.execute_script("return innerWidth") == PHONE[0]
    for name in ("side", "slide", "difference", "all"):
        mode(browser, name)
        wide = browser.execute_script("return document.documentElement.scrollWidth")
        assert wide <= PHONE[0], name
    assert browser.execute_script(BEYOND) == []
    charts = browser.execute_script(
        "return [...document.querySelectorAll('.chart svg[width]')]"
        ".map(each => each.getBoundingClientRect().right)"
    )
    assert len(charts) > 10 and max(charts) <= PHONE[0]


FOCUSED = """
const here = document.activeElement;
const halo = here.querySelector('.halo');
const shown = here.matches('.theme input') ? here.nextElementSibling : here;
const seen = getComputedStyle(shown).outlineStyle !== 'none'
  || (halo && getComputedStyle(halo).stroke !== 'none');
return [here.tagName.toLowerCase(), Boolean(seen)];
"""


def test_all_controls_are_reached_by_tab_and_show_it(browser: Any) -> None:
    browser.execute_script(ONE_RECORD)
    browser.execute_script("document.querySelector('.again details').open = true")
    wanted = {"a", "button", "select", "input", "div", "g", "svg", "summary", "pre"}
    seen: set[str] = set()
    for _ in range(220):
        press(browser, Keys.TAB)
        name, shown = browser.execute_script(FOCUSED)
        if name == "body":
            break
        assert shown, name
        seen.add(name)
    assert seen == wanted


def test_paper_has_all_and_no_controls(browser: Any) -> None:
    browser.execute_script("dispatchEvent(new Event('beforeprint'))")
    dress(browser, PAPER, scheme="dark", media="print")
    assert style(browser, "body", "backgroundColor") == "rgb(255, 255, 255)"
    for hidden in (".toc", ".theme", f"{RECORD} .controls", f"{RECORD} .modes"):
        assert not one(browser, hidden).is_displayed(), hidden
    assert one(browser, f"{RECORD} .again pre").is_displayed()
    assert browser.execute_script("return document.documentElement.scrollWidth") <= PAPER[0]
    printed = base64.b64decode(browser.execute_cdp_cmd("Page.printToPDF", {})["data"])
    assert printed.startswith(b"%PDF") and printed.count(b"/Type /Page\n") > 3
