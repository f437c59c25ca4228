"""The page of generated text: what stands in it, and what it does in a browser."""

from __future__ import annotations

import base64
import hashlib
import itertools
import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from typing import Any

import numpy as np
import pytest
import torch
from browser import emulating, luminance, over, requested
from models import VOCABULARY, causal_language_model, numbers_tokenizer
from pictures import HOSTILE, SCRIPTS, an_explanation
from selenium.webdriver import ActionChains
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.ui import Select, WebDriverWait

from captum_attnflow.explanation import GenerationExplanation
from captum_attnflow.pipelines.text_generation import GeneratedText, TextGenerator
from captum_attnflow.scored_tokens import printable
from captum_attnflow.show import html_page
from captum_attnflow.show.generated import readable

PROMPT = ("Who", " paint", "ed", " the", " wall", "?", " It", " was", " red", ".", "\n")
ANSWER = (" Ann", " paint", "ed", " it", ".")
MINUS = "\N{MINUS SIGN}"


def explained(
    prompt: tuple[str, ...] = PROMPT,
    answer: tuple[str, ...] = ANSWER,
    signed: bool = True,
    **more: Any,
) -> GenerationExplanation:
    """Random scores of an answer, 0 where none can be."""
    random = torch.Generator().manual_seed(len(prompt) + len(answer))
    pieces, spans = prompt + answer, more.get("spans")
    stops = [stop for _, stop in spans or ()] or range(1, len(answer) + 1)
    scores = torch.randn(len(stops), len(pieces), generator=random).double()
    for row, stop in enumerate(stops):
        scores[row, len(prompt) + stop - 1 :] = 0
    return GenerationExplanation(
        tokens=list(pieces),
        scores=scores if signed else scores.abs(),
        log_probabilities=-torch.rand(len(answer), generator=random),
        flow_value=scores.sum(1),
        pieces=pieces,
        **more,
    )


def result(explanation: GenerationExplanation, **more: Any) -> GeneratedText:
    return GeneratedText("", "", explanation, "relevance-flow", **more)


class Document(HTMLParser):
    """The elements of a page, with their attributes and texts."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: dict[str, str] = {}
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        if not self.elements:
            return
        tag, attributes = self.elements[-1]
        name = attributes.get("id") or tag
        self.texts[name] = self.texts.get(name, "") + data

    def data(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.texts["data"])
        return found


class TestWithoutBrowser:
    def test_its_policy_allows_the_very_script_in_it_and_no_request(self):
        document = Document(html_page(explained()))
        [policy] = [
            attributes["content"]
            for tag, attributes in document.elements
            if attributes.get("http-equiv") == "Content-Security-Policy"
        ]
        rules = dict(rule.split(" ", 1) for rule in policy.split("; "))
        assert rules.pop("default-src") == rules.pop("base-uri") == "'none'"
        assert rules.pop("form-action") == "'none'"
        assert rules.pop("img-src") == "data:"
        assert rules.pop("style-src") == "'unsafe-inline'"
        content = f"\n{document.texts['script'].strip()}\n".encode()
        digest = base64.b64encode(hashlib.sha256(content).digest()).decode()
        assert rules.pop("script-src") == f"'sha256-{digest}'"
        assert rules == {}
        addresses = {
            attributes[name]
            for _, attributes in document.elements
            for name in ("src", "href", "action")
            if name in attributes
        }
        assert addresses == {"data:,"}

    def test_tokens_make_no_element(self):
        hostile = (HOSTILE, "</script><img src=x>", "@data@", *SCRIPTS)
        plain, page = (
            html_page(result(explained(prompt, ANSWER, against=against)))
            for prompt, against in ((("a",), ()), (hostile, (HOSTILE,) * len(ANSWER)))
        )
        found = Document(page)
        assert found.elements == Document(plain).elements
        pieces = found.data()["texts"][0]["pieces"]
        assert pieces[: len(hostile)] == [printable(token) for token in hostile]

    def test_it_holds_every_score_and_the_first_token_of_every_unit(self):
        explanation = explained()
        [text] = Document(html_page(explanation)).data()["texts"]
        scores = np.frombuffer(base64.b64decode(text["scores"]), "<f4")
        expected = explanation.scores.float().numpy()
        np.testing.assert_array_equal(scores.reshape(expected.shape), expected)
        assert text["pieces"] == [*PROMPT, *ANSWER]
        assert text["parts"] == ["prompt"] * 11 + ["generated"] * 5
        assert text["starts"] == {
            "word": [0, 1, 3, 4, 5, 6, 7, 8, 9, 11, 12, 14, 15],
            "sentence": [0, 6, 11],
            "line": [0, 11],
        }

    def test_it_says_the_method_the_output_and_what_it_is_held_against(self):
        contrast = explained(
            output="logit",
            against=("Ġx", "y", "z", "w", "v"),
            against_pieces=(" x", "y", "z", "w", "v"),
        )
        [text] = Document(html_page([result(contrast)])).data()["texts"]
        share = contrast.scores[:, 0].abs().sum() / contrast.scores.abs().sum()
        assert text["caption"] == (
            "relevance-flow: logit of each generated token, less that of "
            f'"x", "y", "z", "w", "v"; the first token has {100 * share:.2g} % of all '
            "scores"
        )
        assert text["against"] == ["x", "y", "z", "w", "v"]

    @pytest.mark.parametrize("value", [float("nan"), float("-inf"), float("inf")])
    def test_numbers_that_are_not_finite_make_no_wrong_json(self, value):
        explanation = explained()
        explanation.log_probabilities[0] = value
        explanation.scores[0, 0] = value
        [text] = Document(html_page(explanation)).data()["texts"]
        assert text["probabilities"][0] is None
        assert len(text["probabilities"]) == len(ANSWER)

    def test_several_texts_make_one_page_and_other_pictures_stay_as_they_are(self):
        pages = [result(explained()), explained(("a", "b"), ("c",))]
        texts = Document(html_page(pages)).data()["texts"]
        assert [len(text["pieces"]) for text in texts] == [16, 3]
        flow = an_explanation(2, 3)
        mixed = html_page([explained(), flow])
        assert mixed.count('<table class="token-matrix">') == 1
        assert "<script" not in mixed

    def test_a_notebook_shows_the_matrix(self):
        shown = result(explained())
        assert '<table class="token-matrix">' in shown._repr_html_()
        assert "<script" not in shown._repr_html_()

    def test_rows_of_overlapping_spans_are_not_those_of_tokens(self):
        spans = ((0, 5), (1, 2), (0, 1), (2, 4), (3, 5))
        explanation = explained(spans=spans)
        [text] = Document(html_page(explanation)).data()["texts"]
        assert not text["hasRowPerToken"]
        matrix = explanation.matrix()
        assert not matrix.has_sum
        assert matrix.scores.shape[0] == 5
        with pytest.raises(ValueError, match="explain without spans"):
            explanation.answer()

    def test_scores_of_a_real_model_are_on_it(self, tmp_path):
        torch.manual_seed(0)
        generator = TextGenerator(
            causal_language_model(VOCABULARY), numbers_tokenizer()
        )
        results = generator.explain(
            ["7 8 9", "10"], max_new_tokens=3, against="runner-up"
        )
        texts = Document(html_page(results)).data()["texts"]
        for text, found in zip(texts, results, strict=True):
            assert "".join(text["pieces"]) == f"{found.prompt} {found.generated}"
            assert len(text["against"]) == 3
            expected = found.explanation.log_probabilities.exp().tolist()
            assert text["probabilities"] == pytest.approx(expected)


# What is shown, in a browser.


def tokens_of(browser, part: str = "") -> list[Any]:
    return browser.find_elements(By.CSS_SELECTOR, f"{part} .token")


def choose(browser, row: int, section: str = "") -> None:
    css = f"{section} input[type=radio][value='{row}']"
    browser.execute_script("document.querySelector(arguments[0]).click()", css)


def announced(browser) -> str:
    said = browser.find_element(By.ID, "announced").get_property("textContent")
    return said.replace("\N{NO-BREAK SPACE}", " ")


def reading(browser) -> str:
    return browser.find_element(By.CLASS_NAME, "reading").text


def cells_of_table(browser) -> list[list[str]]:
    return browser.execute_script(
        "return [...document.querySelectorAll('table tr')].slice(1).map((row) =>"
        "[...row.children].map((cell) => cell.textContent))"
    )


def painted(browser) -> list[float]:
    """The signed strength of every token's colour."""
    return browser.execute_script(
        "return [...document.querySelectorAll('.token')].map((token) =>"
        "Number(token.style.getPropertyValue('--share')) *"
        "(token.classList.contains('against') ? -1 : 1))"
    )


def press(browser, *keys: str) -> None:
    for key in keys:
        ActionChains(browser).send_keys(key).perform()


def focused(browser, script: str = "") -> Any:
    return browser.execute_script(f"return document.activeElement{script}")


def strongest_of(matrix: Any, row: int) -> dict[str, list[tuple[str, float]]]:
    """The five strongest tokens of a row for and against, and their per cent."""
    pairs = [
        (name, 100 * share)
        for name, share in zip(matrix.names(row), matrix.shares[row], strict=True)
        if not np.isnan(share)
    ]
    pairs.sort(key=lambda pair: -abs(pair[1]))
    return {
        "For": [(name, share) for name, share in pairs if share > 0][:5],
        "Against": [(name, -share) for name, share in pairs if share < 0][:5],
    }


def said_strongest(sentence: str) -> dict[str, list[tuple[str, float]]]:
    found = {}
    for side in ("For", "Against"):
        part = re.search(rf"{side} it: (.*?) %\.(?: |$)", sentence)
        pairs = re.findall(r"“(.*?)”(?: \(.*?\))? ([\d.e-]+)", part[1]) if part else []
        found[side] = [(name, float(share)) for name, share in pairs]
    return found


LEFT_OUT = [(), ("first",), ("read-out",), ("first", "read-out")]


@pytest.mark.browser
class TestChoosing:
    @pytest.mark.parametrize("signed", [True, False])
    @pytest.mark.parametrize("units", ["token", "word", "sentence", "line"])
    @pytest.mark.parametrize(
        ("left_out", "scale"), [*zip(LEFT_OUT, itertools.cycle(["row", "matrix"]))]
    )
    def test_colours_are_those_of_the_matrix(
        self, units, left_out, scale, signed, opened
    ):
        explanation = explained(signed=signed)
        shown = result(explanation, units=units, left_out=left_out, scale=scale)
        browser = opened(shown)
        matrix, members = shown.matrix(), explanation.sum_over(units).members
        drawn = [u for u, tokens in enumerate(members) if tokens != [0] or not left_out]
        if "first" not in left_out:
            drawn = list(range(len(members)))
        assert len(drawn) == len(matrix.input_tokens)
        for row in range(len(ANSWER) + 1):
            choose(browser, row)
            expected = np.zeros(len(PROMPT) + len(ANSWER))
            for column, unit in enumerate(drawn):
                expected[members[unit]] = np.nan_to_num(matrix.colours[row, column])
            # In a unit only the tokens with a score are painted.
            last = len(PROMPT) + min(row, len(ANSWER) - 1)
            expected[last:] = 0
            if "first" in left_out:
                expected[0] = 0
            if "read-out" in left_out:
                expected[last - 1] = 0
            assert painted(browser) == pytest.approx(expected, abs=6e-4)
            found = said_strongest(announced(browser))
            for side, pairs in strongest_of(matrix, row).items():
                assert [name for name, _ in found[side]] == [name for name, _ in pairs]
                shares = [share for _, share in found[side]]
                wanted = [share for _, share in pairs]
                assert shares == pytest.approx(wanted, rel=0.06)

    def test_a_unit_is_named_by_the_tokens_of_its_sum(self, opened):
        shown = result(explained(), units="word")
        browser = opened(shown)
        browser.execute_script("document.querySelector('details').open = true")
        WebDriverWait(browser, 10).until(cells_of_table)
        for row, name in ((2, "paint"), (3, "painted")):
            choose(browser, row)
            ActionChains(browser).move_to_element(
                tokens_of(browser)[len(PROMPT) + 1]
            ).perform()
            assert browser.find_element(By.ID, "tip").text.startswith(f"“{name}”: ")
            cells = cells_of_table(browser)
            generated = [cell[:2] for cell in cells if cell[2] == "generated"]
            assert sorted(generated, key=lambda cell: int(cell[1])) == [
                ["Ann", str(len(PROMPT) + 1)],
                [name, str(len(PROMPT) + 2)],
            ]

    def test_a_click_on_a_token_colours_the_text_before_it(self, opened):
        browser = opened(explained())
        tokens = tokens_of(browser)
        assert announced(browser) == ""  # nothing is said before a choice
        assert reading(browser).startswith("The whole answer of 5 tokens.")
        tokens[len(PROMPT) + 2].click()
        assert announced(browser) == reading(browser)
        assert reading(browser).startswith("“ed” (token 3 of 5, probability ")
        strengths = painted(browser)
        assert all(strengths[: len(PROMPT) + 2])
        assert not any(strengths[len(PROMPT) + 2 :])
        classes = [token.get_attribute("class") for token in tokens]
        chosen = [number for number, kind in enumerate(classes) if "explained" in kind]
        assert chosen == [len(PROMPT) + 2]
        later = [number for number, kind in enumerate(classes) if "later" in kind]
        assert later == [len(PROMPT) + 3, len(PROMPT) + 4]

    def test_arrow_keys_go_from_generated_token_to_generated_token(self, opened):
        browser = opened(explained())
        tokens_of(browser)[len(PROMPT)].click()
        press(browser, Keys.ARROW_RIGHT)
        assert announced(browser).startswith("“paint” (token 2 of 5")
        press(browser, Keys.ARROW_DOWN, Keys.ARROW_DOWN, Keys.ARROW_LEFT)
        assert announced(browser).startswith("“ed” (token 3 of 5")
        press(browser, Keys.ARROW_RIGHT, Keys.ARROW_RIGHT, Keys.ARROW_RIGHT)
        assert announced(browser).startswith("The whole answer of 5 tokens.")
        assert focused(browser, ".type") == "radio"

    def test_a_screen_reader_finds_a_group_of_radio_buttons(self, opened):
        browser = opened(explained())
        tree = browser.execute_cdp_cmd("Accessibility.getFullAXTree", {})["nodes"]
        named = [
            (node["role"]["value"], node.get("name", {}).get("value", ""))
            for node in tree
            if not node["ignored"]
        ]
        radios = {name for role, name in named if role == "radio"}
        assert radios == {"Ann", "paint", "ed", "it", ".", "whole answer"}
        assert ("group", "Choose a generated token") in named
        assert ("group", "Prompt: arrow keys go from token to token") in named

    def test_the_sign_is_seen_without_colours(self, opened):
        browser = opened(explained())
        choose(browser, 3)
        lines = browser.execute_script(
            "return [...document.querySelectorAll('.for, .against')].map((token) =>"
            "[token.classList.contains('for'),"
            "getComputedStyle(token).borderBottomStyle])"
        )
        assert set(map(tuple, lines)) == {(True, "solid"), (False, "dashed")}
        legend = browser.find_element(By.CLASS_NAME, "legend").text
        assert "for it" in legend
        assert "against it" in legend

    def test_scores_that_are_never_negative_have_no_side_against(self, opened):
        browser = opened(explained(signed=False))
        choose(browser, 2)
        assert "gainst" not in browser.find_element(By.TAG_NAME, "body").text
        assert "For it: " in announced(browser)

    def test_a_contrast_names_the_other_token(self, opened):
        browser = opened(explained(against=("u", "v", "w", "x", HOSTILE)))
        choose(browser, 1)
        assert announced(browser).startswith("“paint” rather than “v” (token 2 of 5")
        choose(browser, 4)
        assert HOSTILE in announced(browser)

    def test_spans_are_chosen_from_a_list(self, opened):
        explanation = explained(spans=((1, 3), (0, 5)))
        browser = opened(explanation)
        labels = browser.find_elements(By.CSS_SELECTOR, "label.row")
        assert [label.text for label in labels] == ["“painted”", "“Ann painted it.”"]
        labels[1].click()
        assert announced(browser).startswith("“Ann painted it.” (tokens 1 to 5 of 5).")
        expected = np.nan_to_num(explanation.matrix().colours)
        assert painted(browser) == pytest.approx(expected[1], abs=6e-4)
        press(browser, Keys.ARROW_LEFT)
        assert announced(browser).startswith("“painted” (tokens 2 to 3 of 5).")
        assert painted(browser) == pytest.approx(expected[0], abs=6e-4)

    @pytest.mark.parametrize("n_given", [1, 4])
    def test_an_empty_answer_is_said_to_be_one(self, n_given, opened):
        explanation = explained(PROMPT[:n_given], ())
        browser = opened(explanation)
        panel = browser.find_element(By.CLASS_NAME, "answer").text
        assert panel == "Nothing was generated."
        ActionChains(browser).move_to_element(tokens_of(browser)[0]).perform()
        browser.find_element(By.CSS_SELECTOR, "#left-out input").click()
        assert browser.get_log("browser") == []
        for left_out in ((), ("first", "read-out")):
            matrix = explanation.matrix(left_out=left_out)
            assert matrix.scores.shape == (0, n_given - bool(left_out))
            matrix.figure()
            assert "<tbody></tbody>" in matrix._repr_html_()

    def test_scores_of_0_and_none_at_all_are_said(self, opened):
        explanation = explained(("a",), ("b",))
        browser = opened(replace(explanation, scores=torch.zeros(1, 2)))
        assert reading(browser).endswith("All scores are 0.")
        browser.find_element(By.CSS_SELECTOR, "#left-out input[value=first]").click()
        assert announced(browser).endswith(
            "No score is shown. Left out: 0 % of its scores."
        )


@pytest.mark.browser
class TestControls:
    def test_units_scale_and_what_is_left_out_are_chosen_on_the_page(self, opened):
        explanation = explained()
        browser = opened(explanation)
        choose(browser, 3)
        Select(browser.find_element(By.ID, "units")).select_by_visible_text("words")
        Select(browser.find_element(By.ID, "scale")).select_by_value("matrix")
        browser.find_element(By.CSS_SELECTOR, "#left-out input[value=first]").click()
        matrix = explanation.matrix("word", ("first",), "matrix")
        assert (
            said_strongest(announced(browser))["For"][0][0]
            == next(iter(strongest_of(matrix, 3)["For"]))[0]
        )
        hidden = explanation.scores[3, 0].abs() / explanation.scores[3].abs().sum()
        share = float(re.search(r"Left out: ([\d.]+) %", announced(browser))[1])
        assert share == pytest.approx(100 * float(hidden), rel=0.06)
        ed = painted(browser)[2]
        assert ed == painted(browser)[1]  # one word
        assert ed == pytest.approx(matrix.colours[3, 0], abs=6e-4)

    def test_spans_of_characters_are_a_unit_of_their_own(self, opened):
        browser = opened(result(explained(), units=((0, 11), (11, 20))))
        units = Select(browser.find_element(By.ID, "units"))
        assert units.first_selected_option.text == "given spans"
        assert len(set(painted(browser)[:3])) == 1
        units.select_by_value("token")
        assert len(set(painted(browser)[:3])) == 3

    def test_a_chats_template_and_system_message_can_be_left_out(self, opened):
        parts = ("template", "system", "template", *["prompt"] * 8, *["generated"] * 5)
        explanation = explained(parts=parts)
        browser = opened(result(explanation, left_out=("template",)))
        choose(browser, 2)
        strengths = painted(browser)
        assert (strengths[0], strengths[2]) == (0, 0)
        assert strengths[1] != 0
        browser.find_element(By.CSS_SELECTOR, "#left-out input[value=system]").click()
        matrix = explanation.matrix(left_out=("system", "template"))
        expected = [0, 0, 0, *np.nan_to_num(matrix.colours[2])]
        assert painted(browser) == pytest.approx(expected, abs=6e-4)

    def test_without_a_chat_there_is_no_template_to_leave_out(self, opened):
        boxes = opened(explained()).find_elements(By.CSS_SELECTOR, "#left-out input")
        assert [box.get_attribute("value") for box in boxes] == ["first", "read-out"]


@pytest.mark.browser
class TestValues:
    def test_hover_and_focus_show_score_and_share(self, opened):
        explanation = explained()
        browser = opened(explanation)
        choose(browser, 4)
        matrix = explanation.matrix()
        tip = browser.find_element(By.ID, "tip")
        tokens = tokens_of(browser)
        ActionChains(browser).move_to_element(tokens[7]).perform()
        WebDriverWait(browser, 10).until(lambda _: tip.is_displayed())
        hovered = tip.text
        ActionChains(browser).move_to_element(
            browser.find_element(By.TAG_NAME, "h1")
        ).perform()
        WebDriverWait(browser, 10).until(lambda _: not tip.is_displayed())
        browser.execute_script("arguments[0].focus()", tokens[7])
        assert tip.text == hovered
        assert tokens[7].get_attribute("aria-describedby") == "tip"
        name, score, share, side = re.fullmatch(
            r"“(.*)”: (\S+), ([\d.]+) % (for|against)", hovered
        ).groups()
        assert name == "was"
        assert float(score.replace(MINUS, "-")) == pytest.approx(
            matrix.scores[4, 7], rel=0.01
        )
        assert float(share) == pytest.approx(100 * abs(matrix.shares[4, 7]), rel=0.06)
        assert side == ("against" if matrix.scores[4, 7] < 0 else "for")
        press(browser, Keys.ESCAPE)
        assert not tip.is_displayed()

    def test_arrow_keys_walk_through_the_prompt(self, opened):
        browser = opened(explained(PROMPT * 30))
        first = tokens_of(browser, ".prompt")[0]
        browser.execute_script("arguments[0].focus()", first)
        press(browser, Keys.ARROW_RIGHT, Keys.ARROW_RIGHT, Keys.ARROW_LEFT)
        assert focused(browser, ".dataset.token") == "1"
        press(browser, Keys.END)
        assert focused(browser, ".dataset.token") == str(30 * len(PROMPT) - 1)
        press(browser, Keys.HOME, Keys.ARROW_DOWN)
        here = "getBoundingClientRect().left"
        assert focused(browser, f".{here}") == pytest.approx(
            browser.execute_script(f"return arguments[0].{here}", first), abs=20
        )
        press(browser, Keys.ARROW_UP)
        assert focused(browser, ".dataset.token") == "0"
        stops = browser.find_elements(By.CSS_SELECTOR, ".prompt [tabindex='0']")
        assert len(stops) == 1  # the text is one stop of the tab key

    def test_in_words_arrow_keys_go_from_word_to_word(self, opened):
        browser = opened(result(explained(), units="word"))
        browser.execute_script("arguments[0].focus()", tokens_of(browser)[1])
        press(browser, Keys.ARROW_RIGHT)
        assert focused(browser, ".dataset.token") == "3"
        press(browser, Keys.ARROW_LEFT)
        assert focused(browser, ".dataset.token") == "1"
        assert "“painted”" in browser.find_element(By.ID, "tip").text

    def test_a_token_without_score_says_why(self, opened):
        browser = opened(result(explained(), left_out=("first",)))
        choose(browser, 2)
        tokens = tokens_of(browser)
        said = []
        for number in (0, len(PROMPT) + 2, len(PROMPT) + 3):
            ActionChains(browser).move_to_element(tokens[number]).perform()
            said.append(browser.find_element(By.ID, "tip").text)
        assert said[0] == "“Who”: left out"
        assert said[1].startswith("“ed”: explained here, probability ")
        assert said[2].startswith("“it”: comes after, probability ")

    def test_the_table_has_every_score(self, opened):
        explanation = explained()
        browser = opened(explanation)
        browser.execute_script("document.querySelector('details').open = true")
        WebDriverWait(browser, 10).until(
            lambda browser: browser.find_elements(By.TAG_NAME, "td")
        )
        choose(browser, 1)
        cells = cells_of_table(browser)
        matrix = explanation.matrix()
        assert len(cells) == len(PROMPT) + 1
        for name, number, part, score, share in cells:
            column = int(number) - 1
            assert name == matrix.input_tokens[column]
            assert part == ("generated" if column == len(PROMPT) else "prompt")
            assert float(score.replace(MINUS, "-")) == pytest.approx(
                matrix.scores[1, column], rel=0.01
            )
            assert float(share.replace(MINUS, "-")[:-2]) == pytest.approx(
                100 * matrix.shares[1, column], rel=0.06
            )
        sizes = [abs(matrix.scores[1, int(number) - 1]) for _, number, *_ in cells]
        assert sizes == sorted(sizes, reverse=True)


@pytest.mark.browser
class TestSafety:
    def test_no_script_fails_and_no_request_leaves_the_page(self, opened):
        browser = opened([explained(), result(explained(SCRIPTS_PROMPT))])
        for row in range(len(ANSWER) + 1):
            choose(browser, row)
        for token in tokens_of(browser)[:20]:
            ActionChains(browser).move_to_element(token).perform()
        assert browser.get_log("browser") == []
        addresses = requested(browser)
        assert addresses[0].startswith("file:")
        assert all(address.startswith(("file:", "data:")) for address in addresses)

    def test_tokens_of_every_script_are_text(self, opened):
        browser = opened(explained(SCRIPTS_PROMPT, (HOSTILE, "</script>")))
        choose(browser, 1)
        shown = [token.get_property("textContent") for token in tokens_of(browser)]
        expected = [printable(token) or "…" for token in SCRIPTS_PROMPT]
        assert shown == [*expected, HOSTILE, "</script>"]
        assert browser.find_elements(By.CSS_SELECTOR, "main img, s") == []
        assert HOSTILE in reading(browser)

    def test_a_script_that_gets_into_the_page_does_not_run(self, opened):
        browser = opened(explained())
        browser.execute_script(
            "const made = document.createElement('script');"
            "made.textContent = 'window.ran = true'; document.body.append(made)"
        )
        assert browser.execute_script("return window.ran") is None
        refused = [entry["message"] for entry in browser.get_log("browser")]
        assert any("Content Security Policy" in message for message in refused)


SCRIPTS_PROMPT = (*SCRIPTS, HOSTILE, "</script><img src=x>", "<s>x</s>")


@pytest.mark.browser
class TestLooks:
    @pytest.mark.parametrize("scheme", ["light", "dark"])
    def test_text_stands_out_from_every_colour_behind_it(self, scheme, opened, browser):
        with emulating(browser, scheme=scheme):
            opened(explained())
            choose(browser, 3)
            colours = browser.execute_script(
                "const style = (element) => getComputedStyle(element);"
                "const paper = style(document.body).backgroundColor;"
                "return [...document.querySelectorAll('.token, .caption, .reading')]"
                ".map((element) => [style(element).color,"
                "style(element).backgroundColor, style(element.closest('.answer') ??"
                " document.body).backgroundColor, paper])"
            )
        assert (luminance(colours[0][3]) < 0.5) == (scheme == "dark")
        for ink, behind, below, _ in colours:
            low, high = sorted([luminance(ink), luminance(over(behind, below))])
            assert (high + 0.05) / (low + 0.05) >= 4.5  # WCAG's ratio for small text

    @pytest.mark.parametrize("width", [400, 1200])
    @pytest.mark.parametrize("n_prompts", [1, 3])
    def test_no_page_is_wider_than_its_window(self, width, n_prompts, opened, browser):
        long = (*PROMPT * 30, "m" * 300)
        with emulating(browser, width):
            opened([explained(long, ANSWER * 12)] * n_prompts)
            page, window = browser.execute_script(
                "return [document.documentElement.scrollWidth, innerWidth]"
            )
        assert page <= window

    @pytest.mark.parametrize("width", [400, 1200])
    def test_prompt_and_answer_are_seen_together(self, width, opened, browser):
        with emulating(browser, width):
            opened(explained(PROMPT * 30, ANSWER * 12))
            for place in (0, 200):
                token = tokens_of(browser, ".prompt")[place]
                browser.execute_script("arguments[0].focus()", token)
                boxes = browser.execute_script(
                    "return [arguments[0], document.querySelector('.reading')].map("
                    "(element) => element.getBoundingClientRect().toJSON())",
                    token,
                )
                for box in boxes:
                    assert box["top"] >= 0
                    assert box["bottom"] <= 800
                at = (boxes[0]["left"] + 1, boxes[0]["top"] + 1)
                seen = "return document.elementFromPoint(...arguments[0])"
                assert browser.execute_script(seen, at) == token  # nothing covers it

    def test_several_prompts_are_chosen_for_singly(self, opened):
        browser = opened([explained(), explained(("a", " b"), (" c", " d"))])
        links = browser.find_elements(By.CSS_SELECTOR, "nav a")
        words = readable("".join(PROMPT))
        assert [link.text for link in links] == [f"1. {words}", "2. a b"]
        choose(browser, 1, "#prompt-2")
        assert announced(browser).startswith("“d” (token 2 of 2")
        assert reading(browser).startswith("The whole answer of 5 tokens.")
        choose(browser, 0, "#prompt-1")
        assert announced(browser).startswith("“Ann” (token 1 of 5")

    def test_paper_shows_what_was_chosen_without_controls(self, opened, browser):
        with emulating(browser, scheme="dark", medium="print"):
            opened(explained())
            body = browser.find_element(By.TAG_NAME, "body")
            assert luminance(body.value_of_css_property("background-color")) == 1
            assert not browser.find_element(By.ID, "controls").is_displayed()
            assert browser.find_element(By.CLASS_NAME, "reading").is_displayed()
            kept = "return getComputedStyle(arguments[0]).printColorAdjust"
            assert browser.execute_script(kept, tokens_of(browser)[0]) == "exact"
