"""A headless Chromium for the tests of HTML pictures."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from selenium import webdriver

REQUIRED = "CAPTUM_ATTNFLOW_REQUIRE_BROWSER"  # set: fail instead of skip
_FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--window-size=1400,900",
)


def open_browser(profile: Path) -> webdriver.Chrome:
    """Start Chromium, or skip the test that asked for it."""
    chromium, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if chromium is None or driver is None:
        reason = "no chromium and chromedriver; Debian: chromium, chromium-driver"
        if os.environ.get(REQUIRED):
            pytest.fail(reason)
        pytest.skip(reason)
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for flag in (*_FLAGS, f"--user-data-dir={profile}"):
        options.add_argument(flag)
    options.set_capability(
        "goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"}
    )
    return webdriver.Chrome(options, webdriver.ChromeService(driver))


def requested(browser: webdriver.Chrome) -> list[str]:
    """Addresses that the browser asked for since the last call."""
    messages = [
        json.loads(entry["message"])["message"]
        for entry in browser.get_log("performance")
    ]
    return [
        message["params"]["request"]["url"]
        for message in messages
        if message["method"] == "Network.requestWillBeSent"
    ]


@contextmanager
def emulating(
    browser: webdriver.Chrome,
    width: int = 1400,
    scheme: str = "light",
    medium: str = "screen",
) -> Iterator[None]:
    """Give a browser a window's width, a colour scheme and a medium, for a while."""
    size = {"width": width, "height": 800, "deviceScaleFactor": 1, "mobile": False}
    features = [{"name": "prefers-color-scheme", "value": scheme}]
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    media = {"media": medium, "features": features}
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", media)
    try:
        yield
    finally:
        browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
        nothing = {"media": "", "features": []}
        browser.execute_cdp_cmd("Emulation.setEmulatedMedia", nothing)


def luminance(colour: str) -> float:
    """Relative luminance of ``rgb(...)``, by WCAG 2.1."""
    parts = [int(part) / 255 for part in re.findall(r"\d+", colour)[:3]]
    linear = [
        p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts
    ]
    return sum(w * p for w, p in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


def over(colour: str, below: str) -> str:
    """Lay a half-transparent colour over another."""
    top, base = (
        [float(part) for part in re.findall(r"[\d.]+", given)]
        for given in (colour, below)
    )
    alpha = top[3] if len(top) == 4 else 1.0
    mixed = [
        alpha * a + (1 - alpha) * b for a, b in zip(top[:3], base[:3], strict=True)
    ]
    return f"rgb({', '.join(str(round(part)) for part in mixed)})"
