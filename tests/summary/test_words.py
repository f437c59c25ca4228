from __future__ import annotations

import csv
import io
from collections import defaultdict

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from score_folders import explained, failed, random_rows, words_of, write_folder

from captum_attnflow.pipelines.predictions import find_target
from captum_attnflow.summary import summarize
from captum_attnflow.summary.folder import Row, ScoreFolder
from captum_attnflow.summary.words import Passage, WordShares, WordTable


def shares_by_hand(rows):
    """By label and word, its share of every text that holds it."""
    found = defaultdict(list)
    for row in rows:
        words = words_of(row)
        total = sum(abs(score) for _, score in words)
        for word in {word for word, _ in words}:
            mine = sum(score for other, score in words if other == word)
            found[row["target"], word].append(mine / total)
    return found


def test_means_and_intervals_are_those_of_scipy(tmp_path):
    rows = random_rows(150)
    [folder] = summarize(write_folder(tmp_path, rows)).folders
    expected = {k: of for k, of in shares_by_hand(rows).items() if len(of) >= 5}
    found = {(of.label, word.word): word for of in folder.labels for word in of.words}
    assert len(found) > 40
    assert found.keys() == expected.keys()
    for key, shares in expected.items():
        share = found[key].share
        interval = stats.t.interval(
            0.95, len(shares) - 1, np.mean(shares), stats.sem(shares)
        )
        assert share.n == len(shares)
        np.testing.assert_allclose(
            [share.mean, share.low, share.high], [np.mean(shares), *interval]
        )


def test_words_are_ranked_by_their_bound_and_not_by_their_mean(tmp_path):
    rare = [explained(n, ["x", "rare"], [10 - s, s]) for n, s in enumerate((9.9, 1, 9))]
    often = [explained(9 + n, ["x", "often"], [6, 4 + n % 2]) for n in range(30)]
    bad = [explained(50 + n, ["x", "bad"], [6, -4 - n % 2]) for n in range(30)]
    summary = summarize(write_folder(tmp_path, rare + often + bad), min_texts=3)
    [label] = summary.folders[0].labels
    by_word = {word.word: word for word in label.words}
    assert by_word["rare"].share.mean > by_word["often"].share.mean
    assert by_word["rare"].speaks == "unclear"
    assert [word.word for word in label.speak_for] == ["x", "often"]
    assert [word.word for word in label.speak_against] == ["bad"]
    assert [word.word for word in label.words] == ["x", "often", "rare", "bad"]


def test_words_in_few_texts_are_left_out_however_often_they_occur(tmp_path):
    rows = [explained(n, ["so"] * 9 + ["good"], range(10)) for n in range(4)]
    folder = write_folder(tmp_path, rows)
    assert summarize(folder).folders[0].labels[0].words == ()
    [label] = summarize(folder, min_texts=4).folders[0].labels
    assert {word.word: word.share.n for word in label.words} == {"so": 4, "good": 4}


@pytest.mark.parametrize(
    ("tokens", "pieces", "words"),
    [
        (["[CLS]", "un", "##fit", "[SEP]"], "wordpiece", ["unfit"]),
        (["<s>", "▁un", "fit", "▁yes", "</s>"], "sentencepiece", ["unfit", "yes"]),
        (["<|begin|>", "Ġun", "fit", "ĠfÃ", "¼r"], "byte-level", ["für", "unfit"]),
        (["one", "two"], None, ["one", "two"]),
    ],
)
def test_pieces_and_special_tokens_are_found_in_the_texts(
    tmp_path, tokens, pieces, words
):
    rows = [explained(n, tokens, range(1, len(tokens) + 1)) for n in range(6)]
    [folder] = summarize(write_folder(tmp_path, rows)).folders
    assert folder.tokenization.pieces == pieces
    assert folder.tokenization.found_in == "texts"
    assert sorted(word.word for word in folder.labels[0].words) == words


def test_what_looks_special_in_some_texts_only_is_a_word(tmp_path):
    rows = [explained(n, ["[CLS]", "<br>", "a"], [1, 2, 3]) for n in range(6)]
    rows += [explained(9, ["[CLS]", "a", "b"], [1, 2, 3])]
    [folder] = summarize(write_folder(tmp_path, rows)).folders
    assert folder.tokenization.special_tokens == {"[CLS]"}
    assert {word.word for word in folder.labels[0].words} == {"<br>", "a"}


def test_the_manifest_goes_before_what_is_found(tmp_path):
    rows = [explained(n, ["a", "##b", "!"], [1, 2, 3]) for n in range(6)]
    folder = write_folder(tmp_path, rows, special_tokens=["!"], pieces="sentencepiece")
    [of] = summarize(folder).folders
    assert (of.tokenization.found_in, of.tokenization.pieces) == (
        *("manifest", "sentencepiece"),
    )
    assert [word.word for word in of.labels[0].words] == ["a##b"]
    assert of.special_share.mean == pytest.approx(0.5)


def test_texts_without_shares_and_failed_ones_are_counted_and_left_out(tmp_path):
    rows = [explained(n, ["so", "good"], [1, 3]) for n in range(5)]
    rows += [
        explained(5, ["so", "good"], [0, 0]),
        explained(6, ["so", "good"], [float("nan"), 1]),
        explained(7, ["so", "good"], [float("inf"), 1]),
        explained(8, [], []),
        failed(9, "the text is blank"),
    ]
    [folder] = summarize(write_folder(tmp_path, rows)).folders
    assert folder.counts.n_without_shares == 4
    assert {word.word: word.share.mean for word in folder.labels[0].words} == {
        "good": 0.75,
        "so": 0.25,
    }


def test_examples_are_the_texts_of_the_largest_share_on_the_words_side(tmp_path):
    rows = [
        explained(n, ["fine", "film"], [n, 20 - n], text="Fine film")
        for n in range(1, 9)
    ]
    [label] = summarize(write_folder(tmp_path, rows)).folders[0].labels
    fine = next(word for word in label.speak_for if word.word == "fine")
    assert [example.row for example in fine.examples] == [8, 7, 6]
    passage = fine.examples[0].passage
    assert passage.marked == (True, False)
    assert passage.shares == pytest.approx((8 / 20, 12 / 20))
    assert fine.examples[0].share == pytest.approx(8 / 20)


@pytest.mark.parametrize("written", ["Café", "Cafe\u0301"])
def test_a_passage_shows_words_as_the_text_has_them(written):
    """An uncased tokenizer reads them in lower case and without accents."""
    row = Row(
        *(0, None, f"{written}-Bar, SO good", "ÀLA Straße", None, "x", "x", 0.5, 0),
        *([], []),
    )
    words = ("cafe", "-", "bar", ",", "so", "odd", "good", "ala", "strasse")
    passage = Passage.of(WordShares(row, words, (0.1,) * 9, 0.0), 0, 9, "so")
    own = (written, "-", "Bar", ",", "SO", "odd", "good", "ÀLA", "Straße")
    assert passage.words == own
    assert passage.spaced == (True, False, False, False, *[True] * 5)
    assert passage.marked == (*[False] * 4, True, *[False] * 4)


def test_a_word_of_marks_alone_is_shown_as_the_tokenizer_has_it():
    row = Row(*(0, None, "A \u0301 b", None, None, "x", "x", 0.5, 0), *([], []))
    shares = WordShares(row, ("a", "\u0301", "b"), (0.1,) * 3, 0.0)
    passage = Passage.of(shares, 0, 3, "b")
    assert passage.words == ("A", "\u0301", "b")
    assert passage.spaced == (True, True, True)


def test_a_passage_is_cut_around_the_word_and_spaced_as_the_text_is(tmp_path):
    words = ("it", "'", "s", "naïve", ",", "so", "good")
    rows = [explained(1, words, [1] * 7, text="It's naive, so good")]
    write_folder(tmp_path, rows)
    row = next(ScoreFolder.open(tmp_path).rows())
    text = WordShares(row, words, (1 / 7,) * 7, 0.0)
    passage = Passage.of(text, 1, 6, "so")
    assert passage.words == ("'", "s", "naive", ",", "so")  # as the text has it
    assert passage.spaced == (False, False, True, False, True)
    assert passage.marked == (False, False, False, False, True)
    assert passage.is_cut == (True, True)


def a_text(row, words, label="pos"):
    of = Row(row, None, " ".join(words), None, None, label, label, 1.0, 0, [], [])
    return WordShares(of, tuple(words), (1 / len(words),) * len(words), 0.0)


@given(
    st.lists(st.lists(st.sampled_from("abcdefghij"), min_size=1), max_size=60),
    st.integers(1, 12),
)
def test_a_full_table_bounds_its_size_and_how_much_it_misses(texts, max_words):
    table = WordTable(max_words)
    for row, words in enumerate(texts):
        table.add([a_text(row, words)])
        assert len(table._tallies) <= max_words
    true = {word: sum(word in text for text in texts) for word in "abcdefghij"}
    kept = {word: tally for (_, word), tally in table._tallies.items()}
    for word, n_texts in true.items():
        if word in kept:
            assert kept[word].n <= n_texts <= kept[word].n + kept[word].n_missed
        else:
            assert n_texts <= table.floor


def test_dropped_words_are_said(tmp_path):
    rows = [explained(n, ["same", f"other{n}"], [1, 2]) for n in range(50)]
    summary = summarize(write_folder(tmp_path, rows), max_words=10)
    [folder] = summary.folders
    assert folder.floor > 0
    assert [word.share.n for word in folder.labels[0].words] == [50]
    assert "Rare ones were dropped" in summary.to_html()


def test_the_csv_holds_every_word_with_all_digits(tmp_path):
    summary = summarize(write_folder(tmp_path, random_rows(80), method="mine"))
    lines = list(csv.DictReader(io.StringIO(summary.to_csv())))
    labels = summary.folders[0].labels
    assert len(lines) == sum(len(of.words) for of in labels)
    first = labels[0].words[0]
    assert lines[0] == {
        "folder": "mine",
        "label": labels[0].label,
        "word": first.word,
        "speaks": first.speaks,
        "n_texts": str(first.share.n),
        "mean_share": str(first.share.mean),
        "low": str(first.share.low),
        "high": str(first.share.high),
        "n_missed_at_most": "0",
    }


@pytest.mark.parametrize("kind", ["csv", "jsonl"])
def test_all_formats_give_the_same(tmp_path, kind):
    rows = [
        row | {"gold": ("neg", "pos")[row["row"] % 2], "note": 'a,\n"b"'}
        for row in random_rows(60)
    ]
    rows.insert(7, failed(99, 'it is "blank", or not') | {"gold": "pos", "note": "x"})
    pages = [
        summarize(write_folder(tmp_path / kind, rows, kind, 25), label_column="gold")
        for kind in ("parquet", kind)
    ]
    one, other = (page.folders[0] for page in pages)
    assert one.labels == other.labels
    assert one.counts == other.counts
    assert one.positions == other.positions
    assert one.wrong == other.wrong


@pytest.mark.parametrize("against", ["neg", 0, "0"])
def test_a_contrast_names_both_labels_wherever_one_is_shown(tmp_path, against):
    rows = [
        explained(n, ["so", "good"], [1, 2], predicted="neg", gold="pos")
        for n in range(6)
    ]
    folder = write_folder(tmp_path, rows, labels=["neg", "pos"], against=against)
    summary = summarize(folder, label_column="gold")
    both, [of] = "pos rather than neg", summary.folders
    assert [label.label for label in of.labels] == [both]
    assert of.counts.labels == {both: 6}
    assert f"\n{both} (6 texts)\n" in summary.__rich__().plain
    page = summary.to_html()
    assert f"<bdi>{both}</bdi>: 6 texts" in page
    assert f"<dd>{both} 6</dd>" in page
    assert f"the data says pos; the scores are for {both}" in page
    lines = list(csv.DictReader(io.StringIO(summary.to_csv())))
    assert {line["label"] for line in lines} == {both}
    [panel] = summary.figures()["words"].axes
    assert panel.get_title() == f"{both}: 6 texts"
    assert all(word.examples for word in of.labels[0].speak_for)


@pytest.mark.parametrize(
    ("against", "label"), [(0, "1"), (1, "2"), ("1", "1"), ("2", "2"), ("0", "1")]
)
def test_a_contrast_is_with_the_label_that_a_table_took_off(tmp_path, against, label):
    """Labels that are numbers: an integer is an index, a string first a name."""
    labels = ["1", "2"]
    folder = write_folder(
        tmp_path, [explained(0, ["good"], [1])], labels=labels, against=against
    )
    assert ScoreFolder.open(folder).against == label
    assert labels[find_target(against, labels)] == label


def test_several_labels_of_a_text_are_ranked_apart(tmp_path):
    rows = [
        explained(n, ["good", "film"], [sign * 3, 1], target=label)
        for n in range(6)
        for label, sign in (("pos", 1), ("neg", -1))
    ]
    [folder] = summarize(write_folder(tmp_path, rows)).folders
    assert (folder.counts.n_rows, folder.counts.n_texts) == (12, 6)
    by_label = {of.label: of for of in folder.labels}
    assert [word.word for word in by_label["pos"].speak_for] == ["good", "film"]
    assert [word.word for word in by_label["neg"].speak_against] == ["good"]


def test_a_text_with_several_explanations_counts_once(tmp_path):
    random = np.random.default_rng(0)
    shares = random.uniform(0.2, 0.8, (6, 3))
    rows = [
        explained(row, ["so", "good"], [share, 1 - share], index=str(number))
        for row, of_row in enumerate(shares)
        for number, share in enumerate(of_row)
    ]
    path = write_folder(tmp_path, rows, task="sentence-similarity")
    summary = summarize(path)
    [folder] = summary.folders
    [label] = folder.labels
    so = next(word for word in label.words if word.word == "so")
    means = shares.mean(1)
    interval = stats.t.interval(0.95, 5, means.mean(), stats.sem(means))
    assert (label.n_texts, so.share.n) == (6, 6)
    np.testing.assert_allclose(
        [so.share.mean, so.share.low, so.share.high], [means.mean(), *interval]
    )
    first = folder.positions.from_start.shares[0]
    np.testing.assert_allclose([first.low, first.high], interval)
    assert (first.n, folder.special_share.n) == (6, 6)
    # The texts of the largest share, each once.
    best = np.argsort(-shares.max(1))[:3]
    assert [example.row for example in so.examples] == list(best)
    page = summary.to_html()
    assert "pos</bdi>: 6 texts" in page
    assert "rows of the table</dt><dd>18" in page
