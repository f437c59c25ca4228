from __future__ import annotations

import base64
import re
from html.parser import HTMLParser

import pytest
from pictures import HOSTILE, SCRIPTS
from rich.console import Console
from score_folders import explained, failed, random_rows, write_folder

from captum_attnflow.show import save_html
from captum_attnflow.summary import summarize


class Elements(HTMLParser):
    """All elements of a page with their attributes, and its text."""

    def __init__(self, page):
        super().__init__()
        self.elements, self.text, self.open = [], "", []
        self.feed(page)

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))
        if tag not in ("meta", "link", "source", "img", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


def hostile_rows():
    words = [token for token in SCRIPTS if token]
    scores = range(-3, len(words) - 3)
    return [
        explained(
            *(n, words, scores),
            **{"id": HOSTILE, "target": HOSTILE, "predicted": f"not {HOSTILE}"},
            **{"gold": "</style>" if n else HOSTILE, "n_truncated": 1},
        )
        for n in range(6)
    ] + [failed(7, HOSTILE) | {"gold": None}]


@pytest.fixture
def hostile(tmp_path):
    said = {"method": HOSTILE, "model": HOSTILE, HOSTILE: {"a": [HOSTILE]}}
    folder = write_folder(tmp_path / "<b>", hostile_rows(), **said)
    other = write_folder(tmp_path / "other", hostile_rows(), method="</script>")
    return summarize([folder, other], label_column="gold")


def test_nothing_that_a_user_wrote_becomes_an_element(hostile):
    page = Elements(hostile.to_html())
    assert page.open == []
    assert {tag for tag, _ in page.elements} == {
        *("html", "head", "meta", "title", "link", "style", "body", "header", "h1"),
        *("nav", "ul", "li", "a", "main", "section", "h2", "h3", "h4", "p", "table"),
        *("thead", "tbody", "tr", "th", "td", "br", "div", "dl", "dt", "dd", "details"),
        *("summary", "ol", "bdi", "span", "i", "b", "mark", "figure", "picture"),
        *("source", "img", "footer"),
    }
    for tag, attributes in page.elements:
        assert not {name for name in attributes if name.startswith("on")}, tag
        for name in ("src", "srcset", "href"):
            assert attributes.get(name, "#").startswith(("#", "data:"))
    assert page.text.count(HOSTILE) > 10
    assert "\x1b" not in hostile.to_html()
    assert HOSTILE not in hostile._repr_html_()


def test_pictures_in_the_page_hold_no_script(hostile):
    found = re.findall(r'="data:image/svg\+xml;base64,([^"]*)"', hostile.to_html())
    assert len(found) == 2 * 3  # light and dark
    for encoded in found:
        assert b"<script" not in base64.b64decode(encoded)


def test_the_page_names_what_it_shows(tmp_path):
    rows = [row | {"gold": "neg"} for row in random_rows(80)]
    rows[3] |= {"predicted": "neg"}
    folder = write_folder(tmp_path, rows, method="my-flow", options={"residual": 0.5})
    summary = summarize(folder, label_column="gold")
    page = Elements(summary.to_html())
    [of] = summary.folders
    links = [value["href"][1:] for tag, value in page.elements if "href" in value][1:]
    anchors = [value["id"] for _, value in page.elements if "id" in value]
    assert links == anchors == ["f1-facts", "f1-words", "f1-positions", "f1-wrong"]
    for label in of.labels:
        for word in (*label.speak_for, *label.speak_against):
            assert word.word in page.text
            assert f"{100 * word.share.mean:+.1f} %" in page.text
            assert word.examples
    assert of.positions.verdict in page.text
    assert '{"residual": 0.5}' in page.text
    assert "79 (98.8 %) predicted otherwise" in page.text


def test_methods_without_a_sign_are_said_to_have_none(tmp_path):
    rows = [explained(n, ["so", "good"], [1, 2]) for n in range(6)]
    unsigned = summarize(write_folder(tmp_path / "a", rows))
    rows[0] |= {"scores": [-1.0, 2.0]}
    signed = summarize(write_folder(tmp_path / "b", rows))
    assert "gives no negative scores" in unsigned.to_html()
    assert "gives no negative scores" not in signed.to_html()


@pytest.mark.parametrize(
    "rows",
    [
        [explained(1, ["a"], [1])],
        [
            explained(n, ["[CLS]", "a", "b"], [1, 2, 3], target=f"l{n}")
            for n in range(40)
        ],
        [explained(1, ["a"] * 3000, range(3000), probability=None, predicted=None)],
    ],
)
def test_few_texts_many_labels_and_long_texts_make_a_page(tmp_path, rows):
    summary = summarize(write_folder(tmp_path, rows))
    assert Elements(summary.to_html()).open == []
    assert len(summary.to_html()) < 400_000
    assert summary.__rich__().plain


def test_a_terminal_shows_words_and_verdicts(tmp_path):
    rows = random_rows(60)
    folders = [
        write_folder(tmp_path / name, rows, method=name) for name in ("one", "other")
    ]
    summary = summarize(folders)
    console = Console(width=400)
    with console.capture() as captured:
        console.print(summary)
    printed = captured.get()
    assert "one  texts 60, explained 60, failed 0, truncated 0" in printed
    strongest = summary.folders[0].labels[0].speak_for[0]
    assert f"{strongest.word} {100 * strongest.share.mean:+.1f} %" in printed
    assert "rank correlation of scores 1.00 [1.00, 1.00]" in printed


def test_files_are_written_and_the_same_each_time(tmp_path):
    folder = write_folder(tmp_path / "scores", random_rows(30))
    summary = summarize(folder)
    written = summary.save(tmp_path / "new" / "out")
    assert [path.name for path in written] == [
        *("summary.html", "words.csv", "words.png", "words.svg"),
        *("positions.png", "positions.svg"),
    ]
    before = [path.read_bytes() for path in written]
    summarize(folder).save(tmp_path / "new" / "out")
    assert [path.read_bytes() for path in written] == before
    save_html(summary, tmp_path / "page.html")
    assert (tmp_path / "page.html").read_bytes() == before[0]


def test_what_cannot_be_written_is_named(tmp_path, monkeypatch):
    summary = summarize(write_folder(tmp_path / "scores", random_rows(12)))
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="file cannot be written"):
        summary.save(tmp_path / "file")

    def full(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match=r"summary.html cannot be written: No space left"):
        summary.save(tmp_path / "out")
    assert list((tmp_path / "out").iterdir()) == []
