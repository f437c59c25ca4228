from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from browser import open_browser, requested
from selenium import webdriver

from captum_attnflow.show import save_html


@pytest.fixture(scope="session")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[webdriver.Chrome]:
    opened = open_browser(tmp_path_factory.mktemp("profile"))
    yield opened
    opened.quit()


@pytest.fixture
def opened(
    browser: webdriver.Chrome, tmp_path: Path
) -> Callable[[Any], webdriver.Chrome]:
    """Open a picture as a user does: saved to a file."""

    def open_picture(picture: Any) -> webdriver.Chrome:
        # Logs of the page before.
        requested(browser)
        browser.get_log("browser")
        save_html(picture, tmp_path / "picture.html")
        browser.get((tmp_path / "picture.html").as_uri())
        return browser

    return open_picture
