from __future__ import annotations

import numpy as np
import pytest
from scipy import stats
from score_folders import explained, of_different_words, random_rows, write_folder

from captum_attnflow.summary import summarize
from captum_attnflow.summary.ranks import standardized_ranks


def positions_of(folder):
    return summarize(folder).folders[0].positions


def tenth_of(place, n):
    return int(10 * (place + 0.5) / n)


def texts_scored_by(function, n_texts=40, seed=0):
    random = np.random.default_rng(seed)
    rows = []
    for row in range(n_texts):
        n = int(random.integers(10, 30))
        words = random.choice(["a", "b", "c", "d"], n)
        scores = [function(place, n, random) for place in range(n)]
        rows.append(explained(row, words, scores))
    return rows


def test_rank_correlations_are_those_of_scipy(tmp_path):
    rows = [of_different_words(row) for row in random_rows(40)]
    found = positions_of(write_folder(tmp_path, rows))
    for estimate, change in (
        (found.rank_correlation, np.asarray),
        (found.absolute_rank_correlation, np.abs),
    ):
        rho = [
            stats.spearmanr(change(row["scores"]), range(len(row["scores"]))).statistic
            for row in rows
        ]
        interval = stats.t.interval(0.95, len(rho) - 1, np.mean(rho), stats.sem(rho))
        np.testing.assert_allclose(
            [estimate.mean, estimate.low, estimate.high], [np.mean(rho), *interval]
        )


@pytest.mark.parametrize("values", [[3.0, 1.0, 3.0, 2.0], [1.0, 1.0, 2.0], [5.0, -1.0]])
def test_ranks_of_ties_are_those_of_scipy(values):
    expected = stats.zscore(stats.rankdata(values))
    np.testing.assert_allclose(standardized_ranks(np.array(values)), expected)


def test_profiles_are_plain_means(tmp_path):
    rows = texts_scored_by(lambda place, n, random: random.normal(), 25)
    rows.append(explained(99, ["a", "b"], [1, -3]))
    found = positions_of(write_folder(tmp_path, rows))
    shares = [np.abs(row["scores"]) / np.abs(row["scores"]).sum() for row in rows]
    for place in range(10):
        there = [share for share in shares if len(share) > place]
        start, end = found.from_start.shares[place], found.from_end.shares[place]
        assert start.n == end.n == len(there)
        assert start.mean == pytest.approx(np.mean([share[place] for share in there]))
        assert end.mean == pytest.approx(
            np.mean([share[-1 - place] for share in there])
        )
        even = np.mean([1 / len(share) for share in there])
        assert found.from_start.even[place] == pytest.approx(even)
        tenth = [
            sum(
                s
                for i, s in enumerate(share)
                if int(10 * (i + 0.5) / len(share)) == place
            )
            for share in shares
        ]
        assert found.relative.shares[place].mean == pytest.approx(np.mean(tenth))
    assert sum(share.mean for share in found.relative.shares) == pytest.approx(1)
    assert sum(found.relative.even) == pytest.approx(1)


def test_few_texts_allow_no_verdict(tmp_path):
    rows = [explained(n, list("abcd"), [4, 3, 2, 1]) for n in range(9)]
    [found] = summarize(write_folder(tmp_path, rows)).folders
    assert "too few texts (9, of at least 10)" in found.positions.verdict


@pytest.mark.parametrize(
    ("function", "verdict"),
    [
        (lambda place, n, random: n - place, "looks at position only: "),
        (lambda place, n, random: -1.0 - place, "looks at position only: "),
        (lambda place, n, random: abs(place - (n - 1) / 2), "looks at position only: "),
        (
            lambda place, n, random: 2.5 * place / n + random.normal(5, 0.4),
            "looks mostly at position: ",
        ),
        (
            lambda place, n, random: place / n + random.normal(5, 0.4),
            "does not look at position only, but position alone explains",
        ),
        (
            lambda place, n, random: random.normal(),
            "does not look at position only: position alone explains",
        ),
    ],
)
def test_the_verdict_says_how_much_position_explains(tmp_path, function, verdict):
    found = positions_of(write_folder(tmp_path, texts_scored_by(function)))
    assert f"The method {verdict}" in found.verdict
    assert f"{100 * found.explained:.0f} %" in found.verdict


def test_random_scores_of_short_texts_are_not_taken_for_a_profile(tmp_path):
    random = np.random.default_rng(1)
    rows = [explained(n, ["a", "b", "c", "d"], random.random(4)) for n in range(200)]
    found = positions_of(write_folder(tmp_path, rows))
    # Rho squared of four random ranks is a third on average.
    assert found.explained < 0.05


def test_texts_of_a_word_or_of_even_scores_have_no_order(tmp_path):
    rows = [explained(n, ["a"], [1]) for n in range(3)]
    rows += [explained(9 + n, ["a", "b", "c"], [1, 1, 1]) for n in range(3)]
    found = positions_of(write_folder(tmp_path, rows))
    assert found.rank_correlation.n == 0
    assert found.explained is None
    assert "too few words" in found.verdict
