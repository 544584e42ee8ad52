"""The report: one file, nothing from outside, everything escaped, and a table that sorts and filters in a browser."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Generator
from dataclasses import replace
from fractions import Fraction
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from qertify.campaign.records import Point, Record
from qertify.campaign.report.content import CARDS, counterexamples, read_answers
from qertify.campaign.report.pictures import Layout, difference, layout_of, picture
from qertify.campaign.report.write import counterexample_pictures, save_pictures, write_report
from qertify.campaign.store import create_store, open_store
from qertify.cli.main import run
from qertify.cli.supervisor import Direct
from qertify.errors import InvalidInputError
from qertify.queries.robustness import verify
from qertify.result import Counterexample, Reason, Result, Verdict
from tests.campaigns import RADII, SmallCampaign

pytest.importorskip("jinja2")
HOSTILE = '</script><script>alert(1)</script><img src=x onerror=alert(2)> & "quoted" \u2028'


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> SmallCampaign:
    return SmallCampaign(tmp_path_factory.mktemp("small"))


@pytest.fixture(scope="module")
def small_page(small: SmallCampaign, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Inputs that are no images, one unknown, hostile names."""
    folder = tmp_path_factory.mktemp("report")
    campaign = small.campaign(model_file=HOSTILE, inputs=HOSTILE, command_line=(HOSTILE,))
    with create_store(folder / "r.db", campaign, small.points) as store:
        for point in small.points:
            for radius in RADII:
                result = verify(small.pose(point.position, Fraction(radius)).query)
                if point.position == 0 and radius == "6":
                    result = replace(
                        result, verdict=Verdict.UNKNOWN, reason=Reason.TIMEOUT, evidence=None, counterexample=None,
                        bound_reached=-12, nearest_class=1, explanation=(HOSTILE,),
                    )  # fmt: skip
                store.add([Record(point.position, radius, result)])
        write_report(store, folder / "r.html")
    return folder / "r.html"


@pytest.fixture(scope="module")
def large_page(small: SmallCampaign, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """2,000 images of 28×28 and 5 radii: 10,000 answers."""
    folder = tmp_path_factory.mktemp("large")
    rng = np.random.default_rng(0)
    points = [Point(at, at, at % 10, at % 10, rng.integers(0, 256, size=784), tuple(range(10))) for at in range(2000)]
    robust = Result("0" * 64, "fixed-point", Verdict.ROBUST, 0, "1", "levels", 0.5, "bab", evidence=_evidence("exact_search"))
    campaign = small.campaign(input_shape=(784,), input_high=255, classes=10)
    with create_store(folder / "r.db", campaign, points) as store:
        records: list[Record] = []
        for point in points:
            for radius in RADII:
                result = replace(robust, label=point.label, radius=radius, seconds=float(rng.exponential()))
                if Fraction(radius) > point.position % 24:
                    levels = tuple((point.codes + rng.integers(-3, 4, size=784)).clip(0, 255).tolist())
                    found = Counterexample(levels, tuple(range(10)), 9 - point.label, 1 + point.position % 5)
                    evidence = _evidence("replayed_counterexample")
                    result = replace(result, verdict=Verdict.NON_ROBUST, evidence=evidence, counterexample=found)
                records.append(Record(point.position, radius, result))
        store.add(records)
        write_report(store, folder / "r.html")
    return folder / "r.html"


def _evidence(name: str) -> Any:
    from qertify.result import Evidence

    return Evidence(name)


class Links(HTMLParser):
    """Everything that a page could load."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []
        self.scripts = 0

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.scripts += tag == "script"
        self.found += [
            value or "" for name, value in attrs if name in ("src", "href", "srcset", "action") or name.startswith("on")
        ]


def test_nothing_is_loaded_and_everything_is_escaped(small_page: Path) -> None:
    text = small_page.read_text("utf-8")
    links = Links()
    links.feed(text)
    assert links.scripts == 2
    assert all(link.startswith(("data:", "#")) for link in links.found)
    assert not re.search(r"https?://|@import|url\(", text)
    assert "<img src=x" not in text
    assert "&lt;script&gt;alert(1)" in text


def test_inputs_that_are_no_images_and_unknowns(small_page: Path) -> None:
    text = small_page.read_text("utf-8")
    assert "<img" not in text
    assert "seen as" in text
    assert "the time limit was reached" in text
    assert "short of a proof" in text
    assert text.count("<svg") == 3
    with open_store(small_page.with_name("r.db")) as store, pytest.raises(InvalidInputError, match="not images"):
        write_report(store, small_page.with_name("x.html"), images=small_page.with_name("pictures"))


def test_a_large_report_is_small(large_page: Path) -> None:
    assert large_page.stat().st_size < 20e6
    text = large_page.read_text("utf-8")
    assert text.count("<img") == 3 * CARDS
    data = json.loads(re.search(r'id="data">(.*?)</script>', text)[1])  # type: ignore[index]
    assert len(data["rows"]) == 10_000


def test_the_most_telling_come_first(large_page: Path) -> None:
    with open_store(large_page.with_name("r.db")) as store:
        found = counterexamples(read_answers(store))
    first = found[:10]
    assert len({(fooled.point.label, fooled.found.predicted) for fooled in first}) == 10
    assert len({fooled.point.position for fooled in found[:CARDS]}) == CARDS


def test_pictures() -> None:
    assert layout_of((784,)) == layout_of((1, 784)) == Layout(28, 28)
    assert layout_of((1, 3, 32, 32)) == layout_of((3, 32, 32)) == Layout(32, 32, 3)
    assert layout_of((28, 28, 1)) == Layout(28, 28, 1, channels_last=True)
    assert layout_of((4,)) is layout_of((50,)) is layout_of((3, 5)) is layout_of((2, 8, 8)) is None
    codes = np.arange(48)
    assert np.array_equal(picture(codes, Layout(4, 4, 3), 0, 255)[1, 2], [6, 22, 38])
    last = Layout(4, 4, 3, channels_last=True)
    assert np.array_equal(picture(codes, last, 0, 255)[1, 2], [18, 19, 20])
    changed = np.zeros(49, dtype=np.int64)
    changed[3], changed[4] = 2, -2
    pixels = difference(np.zeros(49, dtype=np.int64), changed, Layout(7, 7))
    assert pixels[0, 0].tolist() == [255, 255, 255]
    assert pixels[0, 3, 0] > pixels[0, 3, 2]
    assert pixels[0, 4, 0] < pixels[0, 4, 2]


def test_saved_pictures(large_page: Path, tmp_path: Path) -> None:
    with open_store(large_page.with_name("r.db")) as store:
        answers = read_answers(store)
        few = replace(answers, records=answers.records[:40])
        count = save_pictures(counterexample_pictures(few), tmp_path / "pictures")
    files = list((tmp_path / "pictures").iterdir())
    assert len(files) == count > 0
    assert all(file.read_bytes().startswith(b"\x89PNG") for file in files)


@pytest.fixture(scope="module")
def browser() -> Generator[Any]:
    """Headless Chromium."""
    selenium = pytest.importorskip("selenium.webdriver")
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    driver = shutil.which("chromedriver")
    if chromium is None or driver is None:
        pytest.skip("chromium and chromedriver are not installed")
    options = selenium.ChromeOptions()
    options.binary_location = chromium
    sandbox = ("--no-sandbox", "--disable-dev-shm-usage")  # containers have no room for either
    for argument in ("--headless=new", "--disable-gpu", "--force-prefers-reduced-motion", "--window-size=1200,900", *sandbox):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    opened = selenium.Chrome(options=options, service=selenium.ChromeService(driver))
    yield opened
    opened.quit()


def column(browser: Any, number: int) -> list[str]:
    return browser.execute_script(
        "return [...document.querySelectorAll('#table tbody tr')].map(row => row.cells[arguments[0]].textContent)", number
    )


def choose(browser: Any, name: str, value: str) -> None:
    from selenium.webdriver.support.select import Select

    Select(browser.find_element("id", f"filter-{name}")).select_by_value(value)


def test_sorting_and_filtering(browser: Any, small_page: Path) -> None:
    browser.get(small_page.as_uri())
    assert browser.find_element("id", "count").text == "120 answers"
    assert browser.find_element("id", "page").text == "page 1 of 3"
    assert column(browser, 3)[:5] == list(RADII)
    heads = browser.find_elements("css selector", "#table th button")
    heads[0].click()
    assert [int(value) for value in column(browser, 0)][:6] == [23] * 5 + [22]
    assert browser.find_element("css selector", "#table th").get_attribute("aria-sort") == "descending"
    heads[5].click()
    seconds = [float(value) for value in column(browser, 5)]
    assert seconds == sorted(seconds)
    choose(browser, "verdict", "unknown")
    assert browser.find_element("id", "count").text == "1 of 120 answers"
    assert column(browser, 4) == ["unknown"]
    choose(browser, "verdict", "")
    choose(browser, "radius", "4")
    assert set(column(browser, 3)) == {"4"}
    browser.find_element("id", "filter-text").send_keys("Seen as 1 at")
    assert column(browser, 6)
    assert all("seen as 1 at distance" in text for text in column(browser, 6))
    browser.find_element("id", "filter-text").send_keys(" nowhere")
    assert column(browser, 0) == []
    browser.find_element("id", "filter-text").clear()
    browser.find_element("id", "filter-text").send_keys("17")
    assert column(browser, 0) == ["17"]
    assert browser.execute_script("return document.querySelector('h1').textContent") == HOSTILE
    assert browser.get_log("browser") == []


@pytest.mark.parametrize("chosen", [True, False])
def test_print_is_light(browser: Any, small_page: Path, chosen: bool) -> None:
    """Whether darkness is the system's or was chosen on the page."""
    features = [{"name": "prefers-color-scheme", "value": "light" if chosen else "dark"}]
    seen: list[str] = []
    for media in ("screen", "print"):
        browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": media, "features": features})
        if media == "screen":
            browser.get(small_page.as_uri())
            if chosen:
                browser.find_element("id", "theme").click()
        seen.append(browser.execute_script("return getComputedStyle(document.body).backgroundColor"))
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "", "features": []})
    assert seen == ["rgb(20, 23, 28)", "rgb(255, 255, 255)"]


@pytest.mark.parametrize("width", [1200, 390])
def test_the_page_fits_and_switches_its_theme(browser: Any, small_page: Path, width: int) -> None:
    metrics = {"width": width, "height": 800, "deviceScaleFactor": 1, "mobile": width < 500}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    browser.get(small_page.as_uri())
    assert browser.execute_script("return document.documentElement.scrollWidth") <= width
    paper = "return getComputedStyle(document.body).backgroundColor"
    before = browser.execute_script(paper)
    browser.find_element("id", "theme").click()
    assert browser.execute_script(paper) != before
    assert browser.get_log("browser") == []
    browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


def test_a_large_report_opens_at_once(browser: Any, large_page: Path) -> None:
    browser.execute_cdp_cmd("Performance.enable", {"timeDomain": "threadTicks"})  # processor time, whatever else runs here
    browser.get(large_page.as_uri())
    metrics = browser.execute_cdp_cmd("Performance.getMetrics", {})["metrics"]
    assert 0 < next(metric["value"] for metric in metrics if metric["name"] == "TaskDuration") < 2
    assert browser.find_element("id", "count").text == "10,000 answers"
    assert browser.get_log("browser") == []


def test_the_demo_ends_with_a_report(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["demo", "--out", str(tmp_path), "--count", "2"], Direct()) == 0
    assert "report.html" in capsys.readouterr().out
    text = (tmp_path / "report.html").read_text("utf-8")
    assert "Handwritten digits" in text
    with open_store(tmp_path / "results.db") as store:
        assert len(list(store.records())) == 6
