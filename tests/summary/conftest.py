from __future__ import annotations

from collections.abc import Iterator

import pytest
from browser import open_browser
from selenium import webdriver


@pytest.fixture(scope="session")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[webdriver.Chrome]:
    opened = open_browser(tmp_path_factory.mktemp("profile"))
    yield opened
    opened.quit()
