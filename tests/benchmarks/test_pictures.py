"""How soon an interactive flow diagram stands in headless Chromium."""

from __future__ import annotations

from statistics import median

import pytest
from browser import open_browser
from pictures import an_explanation
from selenium.webdriver import ActionChains
from selenium.webdriver.common.by import By

from captum_attnflow.show import flow_diagram, save_html

# From the start of the navigation to the second frame after the script: the first one
# draws what the script made.
PAINTED = """
const done = arguments[0];
requestAnimationFrame(() => requestAnimationFrame(() => done(performance.now())));
"""


@pytest.mark.browser
@pytest.mark.parametrize(("threshold", "milliseconds"), [(0.01, 1000), (0.0, 5000)])
def test_a_diagram_of_12_layers_and_64_tokens_stands_in_time(
    tmp_path, threshold, milliseconds
):
    words = [f"word{place}" for place in range(64)]
    diagram = flow_diagram(
        an_explanation(12, 64), words, threshold=threshold, n_tokens=64
    )
    save_html(diagram, tmp_path / "flow.html")
    browser = open_browser(tmp_path / "profile")
    try:
        loads, hovers = [], []
        for token in range(5):
            browser.get((tmp_path / "flow.html").as_uri())
            loads.append(browser.execute_async_script(PAINTED))
            labels = browser.find_elements(By.CSS_SELECTOR, ".token")
            browser.execute_script("window.before = performance.now()")
            ActionChains(browser, duration=0).move_to_element(labels[token]).perform()
            now = browser.execute_async_script(PAINTED)
            hovers.append(now - browser.execute_script("return window.before"))
    finally:
        browser.quit()
    n_edges = len(diagram.layout.streams.layer)
    print(
        f"\n{n_edges} edges drawn: page {median(loads):.0f} ms, "
        f"hover {median(hovers):.0f} ms, both with the driver's own time"
    )
    assert median(loads) < milliseconds
