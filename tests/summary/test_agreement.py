from __future__ import annotations

import numpy as np
import pytest
from scipy import stats
from score_folders import (
    explained,
    failed,
    of_different_words,
    random_rows,
    words_of,
    write_folder,
)

from captum_attnflow.summary import ranks, summarize


def with_scores(rows, change):
    return [row | {"scores": [float(s) for s in change(row)]} for row in rows]


def noisy(seed):
    random = np.random.default_rng(seed)
    return lambda row: np.array(row["scores"]) + random.normal(0, 1, len(row["scores"]))


@pytest.fixture
def folders(tmp_path):
    def write(*tables, **manifest):
        return [
            write_folder(tmp_path / f"m{n}", rows, method=f"m{n}", **manifest)
            for n, rows in enumerate(tables)
        ]

    return write


def test_rank_correlation_and_overlap_are_those_by_hand(folders):
    rows = random_rows(60)
    tables = [rows, with_scores(rows, noisy(1)), with_scores(rows, noisy(2))]
    found = summarize(folders(*tables)).agreement
    assert (found.n_compared, found.n_other_words, found.n_unmatched) == (60, 0, 0)
    assert [(pair.first, pair.second) for pair in found.pairs] == [
        *(("m0", "m1"), ("m0", "m2"), ("m1", "m2")),
    ]
    for pair, (one, other) in zip(found.pairs, [(0, 1), (0, 2), (1, 2)], strict=True):
        rho, overlap, chance = [], [], []
        for first, second in zip(tables[one], tables[other], strict=True):
            a, b = (
                np.array([score for _, score in words_of(row)])
                for row in (first, second)
            )
            rho.append(stats.spearmanr(a, b).statistic)
            if len(a) > 5:
                top = [set(np.argsort(-np.abs(scores))[:5]) for scores in (a, b)]
                overlap.append(len(top[0] & top[1]) / 5)
                chance.append(5 / len(a))
        interval = stats.t.interval(0.95, len(rho) - 1, np.mean(rho), stats.sem(rho))
        estimate = pair.rank_correlation
        assert pair.compared == "scores"
        np.testing.assert_allclose(
            [estimate.mean, estimate.low, estimate.high], [np.mean(rho), *interval]
        )
        assert pair.top_overlap.n == len(overlap)
        assert pair.top_overlap.mean == pytest.approx(np.mean(overlap))
        assert pair.chance_overlap == pytest.approx(np.mean(chance))


def test_absolute_scores_are_compared_where_one_method_has_no_sign(folders):
    rows = random_rows(30)
    found = summarize(
        folders(rows, with_scores(rows, lambda row: 2 * np.abs(row["scores"])))
    ).agreement
    [pair] = found.pairs
    assert pair.compared == "absolute scores"
    # Pieces of opposite signs add up to less than their absolute values.
    assert 0.8 < pair.rank_correlation.mean < 1


def test_a_method_agrees_with_itself_and_not_with_its_reverse(folders):
    rows = [of_different_words(row) for row in random_rows(20)]
    found = summarize(
        folders(rows, rows, with_scores(rows, lambda row: -np.array(row["scores"])))
    ).agreement
    same, reverse, _ = found.pairs
    assert same.rank_correlation.mean == pytest.approx(1)
    assert same.top_overlap.mean == pytest.approx(1)
    assert reverse.rank_correlation.mean == pytest.approx(-1)


def test_ties_are_broken_by_chance(folders):
    rows = [explained(n, list("abcdefghij"), [1] * 10) for n in range(5)]
    other = with_scores(rows, lambda row: range(1, 11))
    [pair] = summarize(folders(rows, other)).agreement.pairs
    assert pair.rank_correlation.n == 0
    assert pair.top_overlap.mean == pytest.approx(0.5) == pair.chance_overlap


def test_rows_are_matched_by_number_and_label_in_any_order(folders):
    rows = random_rows(40)
    shuffled = [rows[index] for index in np.random.default_rng(0).permutation(40)]
    other = [failed(row["row"], "why") if row["row"] < 4 else row for row in shuffled]
    other = [
        row | {"target": "else"} if row["row"] in (10, 11) else row for row in other
    ]
    found = summarize(folders(rows, other)).agreement
    assert found.n_compared == 35
    assert found.n_unmatched == 3 + 2 + 2
    assert found.pairs[0].rank_correlation.mean == pytest.approx(1)


def test_texts_that_wait_too_long_are_given_up(folders, monkeypatch):
    monkeypatch.setattr(ranks, "_MOST_WAITING", 30)
    rows = [explained(n, list("abc"), [1, 2, 3]) for n in range(40)]
    found = summarize(folders(rows, rows[::-1])).agreement
    assert 0 < found.n_compared < 40
    assert 2 * found.n_compared + found.n_unmatched == 80


def labelled_words(n_rows=12, n_words=4):
    """Several words of one label in a row, each with scores of its own."""
    random = np.random.default_rng(0)
    return [
        explained(
            *(row, list("abcdefgh"), random.normal(size=8)),
            **{"target": "PER", "index": str(n), "start": str(2 * n)},
            end=str(2 * n + 1),
        )
        for row in range(n_rows)
        for n in range(n_words)
    ]


def test_each_labelled_word_is_compared_with_itself(folders):
    rows = labelled_words()
    # As of a model that labels fewer words: counts of words differ then.
    fewer = [row for n, row in enumerate(rows) if n % 7 != 3]
    counted = [row | {"index": str(n)} for n, row in enumerate(fewer)]
    found = summarize(folders(rows, counted, task="token-classification")).agreement
    assert found.n_unmatched == len(rows) - len(fewer)
    [pair] = found.pairs
    assert pair.rank_correlation.low == pytest.approx(1)


def test_a_text_with_several_explanations_is_compared_once(folders):
    rows = labelled_words()
    tables = [rows, with_scores(rows, noisy(3))]
    found = summarize(folders(*tables, task="token-classification")).agreement
    rho = [
        stats.spearmanr(one["scores"], other["scores"]).statistic
        for one, other in zip(*tables, strict=True)
    ]
    of_texts = np.reshape(rho, (12, 4)).mean(1)
    interval = stats.t.interval(0.95, 11, of_texts.mean(), stats.sem(of_texts))
    estimate = found.pairs[0].rank_correlation
    assert (found.n_compared, estimate.n) == (12, 12)
    np.testing.assert_allclose([estimate.low, estimate.high], interval)


def test_a_column_named_index_of_the_data_is_no_place(folders):
    rows = [row | {"index": "seven"} for row in random_rows(8)]
    assert summarize(folders(rows, rows)).agreement.n_compared == 8


def test_a_line_that_is_there_twice_waits_once(folders, monkeypatch):
    monkeypatch.setattr(ranks, "_MOST_WAITING", 30)
    twice, once = (explained(n, list("abc"), [1, 2, 3]) for n in range(2))
    found = summarize(folders([twice] * 20 + [once], [once])).agreement
    assert (found.n_compared, found.n_unmatched) == (1, 20)


def test_texts_of_other_words_are_counted_and_not_compared(folders):
    rows = [explained(n, ["un", "##fit", "Yes", "no"], [1, 2, 4, 3]) for n in range(6)]
    other = [
        row | {"tokens": ["▁unfit", "▁yes", "▁no"], "scores": [3.0, 4.0, 2.0]}
        for row in rows
    ]
    other[0] |= {"tokens": ["▁unfit", "▁yes"], "scores": [3.0, 4.0]}
    found = summarize(folders(rows, other)).agreement
    assert (found.n_compared, found.n_other_words) == (5, 1)


def test_other_data_are_refused(folders, tmp_path):
    rows = random_rows(10)
    other = [row | {"text": "another text"} for row in rows]
    with pytest.raises(ValueError, match=r"m0 and m1 are of different data: row 1 is"):
        summarize(folders(rows, other))
    further = [row | {"row": row["row"] + 100} for row in rows]
    with pytest.raises(ValueError, match="m0, m1 have no row that all of them explain"):
        summarize(folders(rows, further))


@pytest.mark.parametrize(
    ("first", "second", "message"),
    [
        (
            {"text": "so good"},
            {"text": "so good", "text_pair": "so dull"},
            r"row 1 has a second text, 'so dull', in m1 alone \(--pair-column\)\. Give",
        ),
        (
            {"text": "so good", "text_pair": "so dull"},
            {"text": "so good", "text_pair": "so so"},
            "the second text of row 1 is 'so dull' in the one and 'so so' in the other",
        ),
        (
            {"text": 30 * "very " + "good, and slow " + 20 * "so "},
            {"text": 30 * "very " + "bad"},
            r"row 1 is \.\.\.'very very very very good, and slow .*'\.\.\. in the one "
            r"and \.\.\.'very very very very bad' in the other",
        ),
        (
            {"text": "a cafe\u0301"},
            {"text": "a caf\xe9"},
            r"row 1 is 'a cafe\\u0301' in the one and 'a caf\\xe9' in the other",
        ),
        (
            {"text": 5000 * "a" + "b"},
            {"text": 5000 * "a" + "c"},
            "row 1 differs behind the first 2,000 characters",
        ),
    ],
)
def test_other_data_are_shown_where_they_differ(folders, first, second, message):
    rows = random_rows(1)
    tables = [[rows[0] | of] for of in (first, second)]
    with pytest.raises(ValueError, match=message):
        summarize(folders(*tables))


@pytest.mark.parametrize(
    ("against", "message"),
    [
        ((None, 0), "m0 explains labels alone and m1 labels rather than pos, so that"),
        (("pos", 1), "m0 explains labels rather than pos and m1 labels rather than n"),
    ],
)
def test_a_contrast_is_compared_with_the_same_contrast_only(tmp_path, against, message):
    first, second, third = (
        write_folder(
            *(tmp_path / f"m{n}", random_rows(8)),
            method=f"m{n}",
            labels=["pos", "neg"],
            against=of,
        )
        for n, of in enumerate((*against, against[0]))
    )
    with pytest.raises(ValueError, match=message + ".*the same --against"):
        summarize([first, second])
    assert summarize([first, third]).agreement.n_compared == 8


def test_folders_of_one_method_are_named_by_their_paths(tmp_path):
    paths = [
        write_folder(tmp_path / name, random_rows(8), method="same") for name in "ab"
    ]
    assert summarize(paths).agreement.names == tuple(map(str, paths))
