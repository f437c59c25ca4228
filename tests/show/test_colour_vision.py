"""What is for and what is against differ for eyes that tell green from red badly."""

from __future__ import annotations

import io
import re

import numpy as np
import pytest
import torch
from browser import emulating
from PIL import Image
from selenium.webdriver.common.by import By

from captum_attnflow.scored_tokens import colour
from captum_attnflow.show import save_html, text_records, visualize_text

# Linear RGB as seen without one kind of cone, of Machado, Oliveira & Fernandes,
# "A Physiologically-based Model for Simulation of Color Vision Deficiency" (2009).
BLINDNESS = {
    "deuteranopia": [
        [0.367322, 0.860646, -0.227968],
        [0.280085, 0.672501, 0.047413],
        [-0.011820, 0.042940, 0.968881],
    ],
    "protanopia": [
        [0.152286, 1.052583, -0.204868],
        [0.114503, 0.786281, 0.099216],
        [-0.003882, -0.048116, 1.051998],
    ],
    "tritanopia": [
        [1.255528, -0.076749, -0.178779],
        [-0.078411, 0.930809, 0.147602],
        [0.004733, 0.691367, 0.303900],
    ],
}
EVIDENT = 15  # about six times the least difference that is seen side by side
of_every_blindness = pytest.mark.parametrize("blindness", BLINDNESS)


def simulated(rgb: np.ndarray, blindness: str) -> np.ndarray:
    """Linear RGB, shape ``(..., 3)``, of sRGB in [0, 255], as it is seen."""
    part = np.asarray(rgb, float) / 255
    linear = np.where(part <= 0.04045, part / 12.92, ((part + 0.055) / 1.055) ** 2.4)
    return (linear @ np.array(BLINDNESS[blindness]).T).clip(0, 1)


def lab(linear: np.ndarray) -> np.ndarray:
    """CIE 1976 L*a*b* of linear RGB, under D65."""
    to_xyz = [
        [0.4124564, 0.3575761, 0.1804375],
        [0.2126729, 0.7151522, 0.0721750],
        [0.0193339, 0.1191920, 0.9503041],
    ]
    xyz = linear @ np.array(to_xyz).T / np.sum(to_xyz, axis=1)
    f = np.where(xyz > (6 / 29) ** 3, np.cbrt(xyz), xyz * (29 / 6) ** 2 / 3 + 4 / 29)
    x, y, z = np.moveaxis(f, -1, 0)
    return np.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], -1)


def difference(one: np.ndarray, other: np.ndarray, blindness: str) -> float:
    seen = [lab(simulated(each, blindness)) for each in (one, other)]
    return float(np.linalg.norm(seen[0] - seen[1]))


def ground(browser, element) -> np.ndarray:
    """The most frequent colour of an element in a screenshot."""
    picture = Image.open(io.BytesIO(element.screenshot_as_png)).convert("RGB")
    pixels = np.asarray(picture).reshape(-1, 3)
    found, counts = np.unique(pixels, axis=0, return_counts=True)
    return found[counts.argmax()]


@of_every_blindness
@pytest.mark.parametrize("share", [0.5, 1.0])
def test_terminal_colours_for_and_against_stay_apart(share, blindness):
    for_it, against = (
        np.array([int(part) for part in re.findall(r"\d+", colour(sign * share))])
        for sign in (1, -1)
    )
    assert difference(for_it, against, blindness) > EVIDENT


def test_green_and_red_of_the_same_depth_do_not():
    # What the pictures were painted in before.
    green, red = np.array([166, 255, 166]), np.array([255, 166, 166])
    blue, orange = (
        np.array([int(part) for part in re.findall(r"\d+", colour(share))])
        for share in (0.5, -0.5)
    )
    seen = "deuteranopia"
    assert difference(blue, orange, seen) > 1.5 * difference(green, red, seen)


@pytest.mark.browser
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_words_for_and_against_stay_apart_on_a_page(browser, scheme, tmp_path):
    records = text_records(
        torch.tensor([1.0, -1.0, 0.5, -0.5, 0.0]), ["for", "against", "f", "a", "none"]
    )
    save_html(visualize_text(records), tmp_path / "page.html")
    with emulating(browser, scheme=scheme):
        browser.get((tmp_path / "page.html").as_uri())
        words = browser.find_elements(By.CSS_SELECTOR, ".words .token")
        grounds = [ground(browser, word) for word in words]
    for blindness in BLINDNESS:
        for one, other in ((0, 1), (2, 3)):
            found = difference(grounds[one], grounds[other], blindness)
            assert found > EVIDENT, (blindness, one)
        assert difference(grounds[0], grounds[4], blindness) > EVIDENT
