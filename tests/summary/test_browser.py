"""The page, opened from a file in a headless Chromium."""

from __future__ import annotations

import base64

import pytest
from browser import requested
from pictures import HOSTILE, SCRIPTS
from score_folders import explained, random_rows, write_folder
from selenium.webdriver import ActionChains, Keys
from selenium.webdriver.common.by import By

from captum_attnflow.summary import summarize

pytestmark = pytest.mark.browser


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    folder = tmp_path_factory.mktemp("scores")
    words = [token for token in SCRIPTS if token] + ["an" + "other" * 40]
    rows = [
        explained(n, words, range(-3, len(words) - 3), target=HOSTILE, gold="pos")
        for n in range(6)
    ] + [row | {"row": 100 + row["row"], "gold": "neg"} for row in random_rows(60)]
    folders = [
        write_folder(folder / name, rows, method=name) for name in (HOSTILE, "other")
    ]
    summarize(folders, label_column="gold").save(folder)
    return (folder / "summary.html").as_uri()


@pytest.fixture
def opened(browser, page):
    browser.get_log("browser")
    requested(browser)
    browser.get(page)
    return browser


def set_mode(browser, mode):
    browser.execute_cdp_cmd(
        "Emulation.setEmulatedMedia",
        {"features": [{"name": "prefers-color-scheme", "value": mode}]},
    )


def test_the_page_runs_nothing_and_asks_for_nothing_outside(opened):
    assert opened.get_log("browser") == []
    assert all(url.startswith(("file:", "data:")) for url in requested(opened))
    assert opened.find_elements(By.TAG_NAME, "script") == []
    assert HOSTILE in opened.find_element(By.TAG_NAME, "h1").text


@pytest.mark.parametrize("width", [400, 1200])
def test_nothing_is_wider_than_the_window(opened, width):
    size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
    opened.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    try:
        script = "return document.documentElement.scrollWidth"
        assert opened.execute_script(script) <= width
    finally:
        opened.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


def test_examples_open_by_the_keyboard(opened):
    summary = opened.find_element(By.CSS_SELECTOR, ".word-list summary")
    passage = opened.find_element(By.CSS_SELECTOR, ".word-list .passage")
    assert not passage.is_displayed()
    opened.execute_script("arguments[0].focus()", summary)
    ActionChains(opened).send_keys(Keys.ENTER).perform()
    assert passage.is_displayed()
    assert passage.find_elements(By.TAG_NAME, "mark")


CONTRAST = """
const numbers = text => text.match(/[\\d.]+/g).map(Number);
const light = ([r, g, b]) => [r, g, b].map(v => v / 255)
  .map(v => v <= .03928 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4)
  .reduce((sum, v, i) => sum + v * [.2126, .7152, .0722][i], 0);
const page = numbers(getComputedStyle(document.body).backgroundColor);
return [...document.querySelectorAll(arguments[0])].map(element => {
  const style = getComputedStyle(element);
  const [r, g, b, a = 1] = numbers(style.backgroundColor);
  const ground = [r, g, b].map((v, i) => a * v + (1 - a) * page[i]);
  const pair = [light(numbers(style.color)), light(ground)].sort((x, y) => y - x);
  return (pair[0] + .05) / (pair[1] + .05);
});
"""


@pytest.mark.parametrize("mode", ["light", "dark"])
def test_text_stands_out_from_its_ground(opened, mode):
    set_mode(opened, mode)
    try:
        for selector in (".passage bdi", "p, dt, dd, h2", "a"):
            contrasts = opened.execute_script(CONTRAST, selector)
            assert contrasts
            assert min(contrasts) >= 4.5, selector
        shown = opened.execute_script(
            "return document.querySelector('picture img').currentSrc"
        )
        assert ("#e5e7eb" in svg_of(shown)) == (mode == "dark")
    finally:
        opened.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})


def svg_of(address):
    return base64.b64decode(address.partition(",")[2]).decode()
