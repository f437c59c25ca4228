"""Every HTML picture, opened from a file in a headless Chromium."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import pytest
import torch
from browser import emulating, luminance, over, requested
from pictures import HOSTILE, SCRIPTS, an_explanation
from selenium.webdriver import ActionChains
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.ui import WebDriverWait

from captum_attnflow import RelevanceFlow
from captum_attnflow.show import (
    flow_diagram,
    text_records,
    token_matrix,
    visualize_text,
)

pytestmark = pytest.mark.browser


def a_text(tokens: list[str]) -> Any:
    scores = torch.linspace(-1, 1, len(tokens))
    return visualize_text(text_records(scores, tokens, predicted=[HOSTILE]))


def a_diagram(tokens: list[str]) -> Any:
    # Every token singly, as the other pictures show it.
    n_tokens = max(len(tokens), 1)
    return flow_diagram(an_explanation(3, len(tokens)), tokens, n_tokens=n_tokens)


def a_result(tokens: list[str]) -> Any:
    return an_explanation(2, len(tokens)).show([tokens])


def a_matrix(tokens: list[str]) -> Any:
    return token_matrix(torch.randn(3, len(tokens)), tokens, [HOSTILE, "b", "c"])


@dataclass(frozen=True)
class Shown:
    """A picture, where its tokens are and what changes under the pointer."""

    make: Callable[[list[str]], Any]
    tokens: str  # selects the elements
    label: str  # gives an element's token
    hovered: str  # selects what changes where the pointer is
    change: str  # gives the state of an element


OUTLINE = "return getComputedStyle(arguments[0]).outlineStyle"
TIP = "return document.getElementById('tip').textContent"
TEXT = "return arguments[0].textContent.trim()"
PICTURES = {
    "text": Shown(a_text, ".words .token", TEXT, ".words .token", TIP),
    "result": Shown(a_result, "mark", TEXT, "mark", OUTLINE),
    "matrix": Shown(
        a_matrix,
        "thead th",
        TEXT,
        "tbody td",
        "return getComputedStyle(arguments[0], '::after').content",
    ),
    "flow diagram": Shown(
        a_diagram,
        ".token",
        "return arguments[0].querySelector('title').textContent",
        ".token",
        "return document.getElementById('reading').textContent",
    ),
}
shown = pytest.mark.parametrize("picture", PICTURES.values(), ids=PICTURES)


def displayed(token: str) -> str:
    return token.replace("\x1b", "\\x1b")


@shown
def test_tokens_of_every_script_appear_as_text(picture, opened):
    browser = opened(picture.make(SCRIPTS))
    found = browser.find_elements(By.CSS_SELECTOR, picture.tokens)
    labels = [browser.execute_script(picture.label, element) for element in found]
    assert labels == [displayed(token) for token in SCRIPTS]


@shown
def test_hostile_tokens_make_no_element_and_no_alert(picture, opened):
    # The last is short enough for any label.
    browser = opened(picture.make([HOSTILE, "</script><img src=x>", "<s>x</s>"]))
    assert browser.find_elements(By.CSS_SELECTOR, "img, s") == []
    assert HOSTILE in browser.find_element(By.TAG_NAME, "html").get_property(
        "textContent"
    )


@shown
def test_hovering_a_token_changes_the_picture(picture, opened):
    browser = opened(picture.make(["so", "very", "funny"]))
    other, element = browser.find_elements(By.CSS_SELECTOR, picture.hovered)[:2]
    before = browser.execute_script(picture.change, element)
    # A pointer that a page before has left in this very place would not move.
    ActionChains(browser).move_to_element(other).move_to_element(element).perform()
    # The page may take its time on a machine that is busy.
    WebDriverWait(browser, 10).until(
        lambda browser: browser.execute_script(picture.change, element) != before
    )


@shown
def test_no_script_fails_and_no_request_leaves_the_page(picture, opened):
    browser = opened(picture.make(["so", "very", "funny"]))
    for element in browser.find_elements(By.CSS_SELECTOR, picture.hovered):
        ActionChains(browser).move_to_element(element).perform()
    assert browser.get_log("browser") == []
    addresses = requested(browser)
    assert addresses[0].startswith("file:")
    assert all(address.startswith(("file:", "data:")) for address in addresses)


@shown
@pytest.mark.parametrize("n_tokens", [1, 200])
def test_one_token_and_two_hundred_are_shown(picture, n_tokens, opened):
    browser = opened(picture.make(["word"] * n_tokens))
    assert len(browser.find_elements(By.CSS_SELECTOR, picture.tokens)) == n_tokens
    assert browser.get_log("browser") == []


@pytest.mark.parametrize("make", [a_text, a_matrix])
def test_a_text_without_tokens_is_shown(make, opened):
    assert opened(make([])).get_log("browser") == []


def test_zero_scores_are_not_painted(opened):
    records = text_records(torch.zeros(2), ["so", "funny"])
    browser = opened(visualize_text(records))
    script = "return getComputedStyle(arguments[0]).backgroundColor"
    words = browser.find_elements(By.CSS_SELECTOR, ".words .token")
    colours = [browser.execute_script(script, word) for word in words]
    assert colours == ["rgba(0, 0, 0, 0)"] * 2


class TestTexts:
    def test_a_hovered_word_tells_its_score_its_share_and_what_they_are_of(
        self, opened
    ):
        records = text_records(
            torch.tensor([[3.0, -1.0]]), [["so", "dull"]], target=["positive"]
        )
        browser = opened(visualize_text(records))
        first, second = browser.find_elements(By.CSS_SELECTOR, ".words .token")
        tip = browser.find_element(By.ID, "tip")
        assert not tip.is_displayed()
        ActionChains(browser).move_to_element(first).perform()
        assert tip.text.splitlines()[0] == "“so”: +3, 75 % for"
        ActionChains(browser).move_to_element(second).perform()
        about = "scores for “positive”; they sum to 2.00"
        assert tip.text.splitlines() == ["“dull”: \N{MINUS SIGN}1, 25 % against", about]

    def test_keys_go_from_word_to_word_of_a_text_and_tab_to_the_next(self, opened):
        words = [f"word{place}" for place in range(60)]
        browser = opened(visualize_text(text_records(torch.ones(2, 60), [words] * 2)))
        browser.execute_script("document.querySelector('.words .token').focus()")
        focused = "return document.activeElement.textContent"
        tip = browser.find_element(By.ID, "tip")
        for key, word in (
            (Keys.ARROW_RIGHT, "word1"),
            (Keys.END, "word59"),
            (Keys.ARROW_LEFT, "word58"),
            (Keys.HOME, "word0"),
        ):
            press_keys(browser, key)
            assert browser.execute_script(focused) == word
            assert tip.text.startswith(f"“{word}”: +1")
        press_keys(browser, Keys.ARROW_DOWN)
        below = browser.execute_script(
            "const box = document.activeElement.getBoundingClientRect();"
            "const first = document.querySelector('.words .token');"
            "return [box.left - first.getBoundingClientRect().left,"
            "box.top - first.getBoundingClientRect().top]"
        )
        assert below[0] == pytest.approx(0, abs=1)
        assert below[1] > 0
        described = "return document.activeElement.getAttribute('aria-describedby')"
        assert browser.execute_script(described) == "tip"
        press_keys(browser, Keys.ESCAPE)
        assert not tip.is_displayed()
        press_keys(browser, Keys.TAB, Keys.TAB)  # the table, and the second text
        assert browser.execute_script(focused) == "word0"

    @pytest.mark.parametrize("scheme", ["light", "dark"])
    def test_words_stand_out_from_their_ground(self, scheme, opened, browser):
        with emulating(browser, scheme=scheme):
            opened(a_text(["so", "very", "funny"]))
            paper = browser.execute_script(
                "return getComputedStyle(document.body).backgroundColor"
            )
            assert (luminance(paper) < 0.5) == (scheme == "dark")
            styles = browser.execute_script(
                "return [...document.querySelectorAll('.words .token, .legend i')]"
                ".map((word) => [getComputedStyle(word).color,"
                "getComputedStyle(word).backgroundColor])"
            )
        for ink, ground in styles:
            low, high = sorted([luminance(ink), luminance(over(ground, paper))])
            assert (high + 0.05) / (low + 0.05) >= 4.5

    def test_a_token_runs_no_script_of_its_own(self, opened):
        hostile = "</span><script>document.title = 'run'</script>"
        browser = opened(a_text([hostile, HOSTILE]))
        assert browser.title == "Attributions"
        # What came in all the same would not run.
        browser.execute_script(
            "const script = document.createElement('script');"
            "script.textContent = 'document.title = \"run\"';"
            "document.body.append(script)"
        )
        assert browser.title == "Attributions"


class TestFlowDiagram:
    def test_a_hovered_token_tells_its_share_and_highlights_its_flow(self, opened):
        explanation = an_explanation(3, 5)
        browser = opened(flow_diagram(explanation, list("abcde")))
        tokens = browser.find_elements(By.CSS_SELECTOR, ".token")
        assert browser.find_elements(By.CSS_SELECTOR, ".trace path") == []
        ActionChains(browser).move_to_element(tokens[2]).perform()
        reading = browser.find_element(By.ID, "reading").text
        share = 100 * explanation.scores[0, 2] / explanation.flow_value[0]
        assert reading.startswith("“c” (token 3) sends")
        assert float(reading.split(", ")[1].split()[0]) == pytest.approx(
            float(share), rel=0.01
        )
        assert "active" in tokens[2].get_attribute("class")
        assert browser.find_elements(By.CSS_SELECTOR, ".trace path")

    @pytest.mark.parametrize("relative_to", ["network", "layer"])
    @pytest.mark.parametrize("position", range(4))
    def test_the_highlighted_flow_is_what_the_token_sends(
        self, position, relative_to, opened
    ):
        explanation = an_explanation(3, 4)
        browser = opened(
            flow_diagram(explanation, threshold=0.2, relative_to=relative_to)
        )
        token = browser.find_elements(By.CSS_SELECTOR, ".token")[position]
        ActionChains(browser).move_to_element(token).perform()
        sent = edges_from(explanation.flow[0].tolist(), position)
        same_layer = relative_to == "layer"
        shares = {
            edge: amount
            / max(
                other
                for (layer, _, _), other in sent.items()
                if layer == edge[0] or not same_layer
            )
            for edge, amount in sent.items()
        }
        found = highlighted(browser)
        assert set(found) == {edge for edge, share in shares.items() if share >= 0.2}
        widest = max(found.values())
        for edge, width in found.items():
            assert width / widest == pytest.approx(shares[edge], abs=0.05)

    def test_a_click_keeps_the_highlight_and_a_second_one_drops_it(self, opened):
        browser = opened(a_diagram(["so", "very", "funny"]))
        one, other = browser.find_elements(By.CSS_SELECTOR, ".token")[:2]
        one.click()
        ActionChains(browser).move_to_element(other).perform()
        assert "“so”" in browser.find_element(By.ID, "reading").text
        one.click()
        ActionChains(browser).move_to_element(other).perform()
        assert "“very”" in browser.find_element(By.ID, "reading").text

    def test_layers_fold_and_unfold(self, opened):
        browser = opened(flow_diagram(an_explanation(5, 3)))
        whole = [f"layer {row}" for row in range(1, 6)]
        assert rows(browser) == ["input", *whole]
        press(browser, "fold layer 2")
        assert rows(browser) == ["input", *whole, "layer 2 folded"]
        press(browser, "fold layer 3")
        assert "layer 2" not in rows(browser)
        assert "layers 2 to 3 folded" in rows(browser)
        edges = browser.find_elements(By.CSS_SELECTOR, ".edges path")
        unfolded = an_explanation(5, 3)
        drawn = flow_diagram(unfolded).layout.streams
        assert len(edges) == sum(layer not in (1, 2) for layer in drawn.layer)
        press(browser, "unfold layers 2 to 3")
        assert rows(browser) == ["input", *whole]

    def test_one_button_folds_all_layers_and_unfolds_them(self, opened):
        browser = opened(flow_diagram(an_explanation(5, 3)))
        button = browser.find_element(By.ID, "fold")
        button.click()
        assert rows(browser) == ["input", "layer 5", "layers 1 to 5 folded"]
        assert button.text == "Unfold all layers"
        button.click()
        assert len(rows(browser)) == 6

    def test_keys_reach_every_node_and_fold_layers(self, opened):
        browser = opened(flow_diagram(an_explanation(3, 4), list("abcd")))
        browser.execute_script("document.querySelectorAll('.token')[1].focus()")
        said = browser.find_element(By.ID, "reading")
        assert said.text.startswith("“b” (token 2) sends")
        press_keys(browser, Keys.ARROW_UP, Keys.ARROW_UP)
        assert said.text.startswith("“b” at layer 1 passes on")
        press_keys(browser, Keys.ARROW_RIGHT)
        assert said.text.startswith("“c” at layer 1 passes on")
        press_keys(browser, Keys.ENTER, Keys.ARROW_LEFT)
        assert said.text.startswith("“c” at layer 1")  # kept
        press_keys(browser, Keys.ESCAPE, Keys.ARROW_DOWN, Keys.ARROW_DOWN)
        assert said.text.startswith("“b” (token 2) sends")
        browser.execute_script("document.querySelector('.fold').focus()")
        press_keys(browser, Keys.ENTER)
        assert "layer 1 folded" in rows(browser)
        focused = "return document.activeElement.getAttribute('aria-label')"
        assert browser.execute_script(focused) == "unfold layer 1"

    def test_a_hovered_edge_tells_what_it_carries(self, opened):
        explanation = an_explanation(2, 3)
        browser = opened(flow_diagram(explanation, list("abc"), threshold=0))
        path = browser.find_elements(By.CSS_SELECTOR, ".edges path")[-1]
        browser.execute_script(
            "arguments[0].dispatchEvent(new MouseEvent('mouseenter'))", path
        )
        streams = flow_diagram(explanation, threshold=0).layout.streams
        ends = (streams.tail[-1], streams.head[-1])
        tail, head = ("abc"[column] for column in ends)
        amount = streams.amount[-1]
        said = browser.find_element(By.ID, "reading").text
        assert said.startswith(
            f"“{tail}” to “{head}” in layer {streams.layer[-1] + 1}:"
        )
        number, share = map(float, re.findall(r"(?<=[:,] )[\d.]+", said))
        assert number == pytest.approx(amount, rel=0.01)
        value = float(explanation.flow_value[0])
        assert share == pytest.approx(100 * amount / value, rel=0.01)

    @pytest.mark.parametrize("n_tokens", [12, 60, 200])
    @pytest.mark.parametrize("width", [400, 1200])
    def test_no_page_is_wider_than_its_window(self, width, n_tokens, opened, browser):
        metrics = {"width": width, "height": 800, "deviceScaleFactor": 1}
        override = "Emulation.setDeviceMetricsOverride"
        browser.execute_cdp_cmd(override, {**metrics, "mobile": False})
        try:
            words = [f"word{'y' * (place % 9)}" for place in range(n_tokens)]
            opened(flow_diagram(an_explanation(6, n_tokens), words, target="m" * 200))
            page, window = browser.execute_script(
                "return [document.documentElement.scrollWidth, innerWidth]"
            )
            drawing, room = browser.execute_script(
                "const main = document.getElementById('diagram');"
                "return [main.scrollWidth, main.clientWidth]"
            )
        finally:
            browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
        assert page <= window
        assert width == 400 or drawing <= room  # a narrow one scrolls within

    @pytest.mark.parametrize("scheme", ["light", "dark"])
    def test_text_stands_out_from_the_paper_in_both_schemes(
        self, scheme, opened, browser
    ):
        feature = {"name": "prefers-color-scheme", "value": scheme}
        browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [feature]})
        try:
            opened(a_diagram(["so", "very", "funny"]))
            ink, muted, paper = browser.execute_script(
                "const style = (css) => getComputedStyle(document.querySelector(css));"
                "return [style('body').color, style('.muted').color,"
                "style('body').backgroundColor]"
            )
        finally:
            browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})
        assert (luminance(paper) < 0.5) == (scheme == "dark")
        for text in (ink, muted):  # WCAG's ratio for small text
            low, high = sorted([luminance(text), luminance(paper)])
            assert (high + 0.05) / (low + 0.05) >= 4.5

    def test_others_are_a_column_with_their_score_in_the_table(self, opened):
        explanation = an_explanation(2, 30)
        browser = opened(flow_diagram(explanation, n_tokens=4))
        tokens = browser.find_elements(By.CSS_SELECTOR, ".token")
        assert len(tokens) == 5
        ActionChains(browser).move_to_element(tokens[-1]).perform()
        assert browser.find_element(By.ID, "reading").text.startswith(
            "“26 others” sends"
        )
        browser.execute_script("document.querySelector('details').open = true")
        cells = browser.find_elements(By.CSS_SELECTOR, "tbody td:nth-child(4)")
        shares = [float(cell.text) for cell in cells]
        assert sum(shares) == pytest.approx(100, rel=0.01)

    def test_a_notebook_shows_it_in_a_frame(self, browser, tmp_path):
        page = tmp_path / "notebook.html"
        page.write_text(a_diagram(["so", HOSTILE])._repr_html_(), "utf-8")
        browser.get_log("browser")
        browser.get(page.as_uri())
        browser.switch_to.frame(browser.find_element(By.TAG_NAME, "iframe"))
        tokens = browser.find_elements(By.CSS_SELECTOR, ".token")
        ActionChains(browser).move_to_element(tokens[0]).perform()
        assert "“so” (token 1) sends" in browser.find_element(By.ID, "reading").text
        browser.switch_to.default_content()
        assert browser.get_log("browser") == []

    def test_a_hovered_token_tells_its_signed_flow_and_highlights_its_edges(
        self, opened, demo
    ):
        ids = demo.encode(["the plot is dull but the acting is funny"])["input_ids"]
        method = RelevanceFlow(lambda ids: demo.model(ids).logits)
        explanation = method.explain(ids, demo.tokenizer.mask_token_id, target=1)
        browser = opened(flow_diagram(explanation, threshold=0))
        scores, direct = explanation.scores[0], explanation.direct[0]
        lowest = int(scores.argmin())
        token = browser.find_elements(By.CSS_SELECTOR, ".token")[lowest]
        assert "negative" in token.get_attribute("class")
        ActionChains(browser).move_to_element(token).perform()
        said = browser.find_element(By.ID, "reading").text.replace(
            "\N{MINUS SIGN}", "-"
        )
        said = said.partition(" sends")[2]
        sent, share, past = map(float, re.findall(r" ([-+]?[\d.]+)", said))
        output = float(explanation.flow_value[0])
        assert sent == pytest.approx(float(scores[lowest]), rel=0.01)
        assert share == pytest.approx(100 * float(scores[lowest]) / output, rel=0.01)
        assert past == pytest.approx(float(direct[lowest]), rel=0.01)
        flow = explanation.flow[0, 0, :, lowest].tolist()
        assert set(highlighted(browser)) == {
            (0, lowest, head) for head, amount in enumerate(flow) if amount
        }
        dashed = browser.find_elements(
            By.CSS_SELECTOR, ".trace path.apart[stroke-dasharray]"
        )
        negative = browser.find_elements(By.CSS_SELECTOR, ".trace path.apart")
        assert len(dashed) == len(negative) > 0
        assert browser.get_log("browser") == []

    @pytest.mark.parametrize("n_tokens", [12, 64, 200])
    def test_labels_do_not_overlap(self, n_tokens, opened):
        words = [f"word{'y' * (place % 9)}" for place in range(n_tokens)]
        browser = opened(
            flow_diagram(an_explanation(2, n_tokens), words, n_tokens=n_tokens)
        )
        boxes = browser.execute_script(
            "return [...document.querySelectorAll('.token text')].map((text) => {"
            "const box = text.getBoundingClientRect(); return [box.left, box.right]})"
        )
        ordered = sorted(boxes)
        assert len(ordered) == n_tokens
        for (_, right), (left, _) in pairwise(ordered):
            assert right <= left


def rows(browser) -> list[str]:
    """Rows that are shown, from below, and then strips of folded layers."""
    names = browser.find_elements(By.CSS_SELECTOR, "text.row")
    shown = [name.text for name in names]
    return [name for name in shown if name.startswith(("input", "layer"))]


def press(browser, label: str) -> None:
    browser.find_element(By.CSS_SELECTOR, f'.fold[aria-label="{label}"]').click()


def press_keys(browser, *keys: str) -> None:
    for key in keys:
        ActionChains(browser).send_keys(key).perform()


def edges_from(flow: list, position: int) -> dict[tuple[int, int, int], float]:
    """What a token sends over every edge, in plain loops."""
    n_tokens = len(flow[0])
    share = [float(column == position) for column in range(n_tokens)]
    sent = {}
    for layer, edges in enumerate(flow):
        arrived = [0.0] * n_tokens
        for head in range(n_tokens):
            for tail in range(n_tokens):
                amount = edges[head][tail] * share[tail]
                sent[layer, tail, head] = amount
                arrived[head] += amount
        share = [
            amount / sum(edges[head]) if amount else 0.0
            for head, amount in enumerate(arrived)
        ]
    return sent


def highlighted(browser) -> dict[tuple[int, int, int], float]:
    """Widths of the trace's edges (layer, tail, head), read from the drawing."""
    curves, nodes = browser.execute_script(
        "const all = (css) => [...document.querySelectorAll(css)];"
        "return [all('.trace path').map((path) =>"
        "[path.getAttribute('d'), path.getAttribute('stroke-width')]), all("
        "'.hit').map((node) => [node.cx.baseVal.value, node.cy.baseVal.value])]"
    )
    columns = sorted({x for x, _ in nodes})
    levels = sorted({y for _, y in nodes}, reverse=True)

    def nearest(places: list[float], number: str) -> int:
        return min(range(len(places)), key=lambda at: abs(places[at] - float(number)))

    found = {}
    for path, width in curves:
        for curve in path.split("M")[1:]:
            numbers = curve.replace("C", " ").split()
            tail, head = nearest(columns, numbers[0]), nearest(columns, numbers[-2])
            found[nearest(levels, numbers[1]), tail, head] = float(width)
    return found
