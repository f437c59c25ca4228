from __future__ import annotations

import itertools
from collections.abc import Callable

import pytest
import torch
from sklearn.metrics import average_precision_score
from torch import Tensor

from captum_attnflow.metrics import (
    evidence_average_precision,
    evidence_f1,
    evidence_hit,
    evidence_rank,
)

METRICS = {
    "rank": evidence_rank,
    "hit@1": evidence_hit,
    "hit@3": lambda *given, **masks: evidence_hit(*given, k=3, **masks),
    "average precision": evidence_average_precision,
    "F1": evidence_f1,
    "F1 of 40 %": lambda *given, **masks: evidence_f1(*given, fraction=0.4, **masks),
}

# What each is for one order of the tokens, labels from the highest score down.
PLAIN: dict[str, Callable[[list[bool]], float]] = {
    "rank": lambda labels: 1 + labels.index(True),
    "hit@1": lambda labels: any(labels[:1]),
    "hit@3": lambda labels: any(labels[:3]),
    "average precision": lambda labels: average_precision(labels),
    "F1": lambda labels: f1(labels, sum(labels)),
    "F1 of 40 %": lambda labels: f1(labels, -(-4 * len(labels) // 10)),
}

TIED = [
    ([0.5, 0.1, -0.3, 0.9, 0.2, 0.4], [0, 1, 0, 0, 0, 1]),  # no ties
    ([0.5, 0.5, 0.1, 0.5, 0.1, 0.0], [0, 1, 0, 0, 1, 0]),  # two groups of ties
    ([0.0, 0.0, 0.0, 0.0, 0.0, 0.0], [0, 1, 1, 0, 0, 0]),  # nothing is decided
    ([0.2, 0.1, 0.1, 0.1, 0.1, 0.1], [0, 1, 1, 0, 1, 1]),  # hits for certain
    ([-1.0, -1.0, 3.0, 3.0, 3.0, -2.0], [0, 0, 0, 0, 0, 1]),
    ([1.0, 1.0, 1.0, 0.0, 0.0, 0.0], [1, 1, 1, 1, 1, 1]),  # all is evidence
    ([2.0, 1.0, 1.0, 1.0, 1.0, 1.0], [1, 0, 0, 0, 0, 1]),
]


def average_precision(labels: list[bool]) -> float:
    found = [place for place, label in enumerate(labels, 1) if label]
    return sum(number / place for number, place in enumerate(found, 1)) / len(found)


def f1(labels: list[bool], taken: int) -> float:
    true = sum(labels[:taken])
    precision, recall = true / taken, true / sum(labels)
    return 2 * precision * recall / (precision + recall) if true else 0.0


def mean_over_orders(
    plain: Callable[[list[bool]], float], scores: list[float], labels: list[int]
) -> float:
    """Try every order of all tokens that the scores allow."""
    allowed = [
        [bool(labels[token]) for token in order]
        for order in itertools.permutations(range(len(scores)))
        if all(scores[a] >= scores[b] for a, b in itertools.pairwise(order))
    ]
    return sum(map(plain, allowed)) / len(allowed)


@pytest.fixture
def tied() -> tuple[Tensor, Tensor]:
    scores, labels = zip(*TIED, strict=True)
    return torch.tensor(scores), torch.tensor(labels).bool()


@pytest.mark.parametrize("name", METRICS)
def test_ties_count_as_the_mean_over_all_orders(name, tied):
    wanted = [mean_over_orders(PLAIN[name], *example) for example in TIED]
    values = METRICS[name](*tied)
    assert values.dtype == torch.float64
    assert values.tolist() == pytest.approx(wanted, abs=1e-12)


@pytest.mark.parametrize("name", METRICS)
def test_tokens_outside_the_ranking_do_not_count(name, tied):
    scores, labels = tied
    wide = torch.full((len(scores), 10), 5.0)
    marks = torch.zeros(wide.shape, dtype=torch.bool)
    # Kept tokens before and within, padding on either side, all of the highest score.
    columns = torch.tensor([2, 3, 4, 6, 7, 8])
    wide[:, columns], marks[:, columns] = scores, labels
    keep, padding = torch.zeros(2, 10, dtype=torch.bool)
    keep[[1, 5]] = True
    padding[[0, 9]] = True
    values = METRICS[name](
        wide, marks, keep=keep, padding=padding.expand(len(wide), -1)
    )
    wanted = METRICS[name](scores, labels).tolist()
    assert values.tolist() == pytest.approx(wanted, abs=1e-12)


@pytest.mark.parametrize("name", METRICS)
def test_an_example_does_not_depend_on_its_batch(name, tied):
    scores, labels = tied
    rows = zip(scores[:, None], labels[:, None], strict=True)
    alone = [METRICS[name](*row)[0] for row in rows]
    assert METRICS[name](scores, labels).tolist() == torch.stack(alone).tolist()


def test_average_precision_is_scikit_learns_where_nothing_ties():
    generator = torch.Generator().manual_seed(0)
    scores = torch.rand(20, 50, generator=generator, dtype=torch.float64)
    labels = torch.rand(20, 50, generator=generator) < 0.15
    wanted = [
        average_precision_score(row.numpy(), own.numpy())
        for row, own in zip(labels, scores, strict=True)
    ]
    assert evidence_average_precision(scores, labels).tolist() == pytest.approx(wanted)


def test_features_are_summed_and_dtypes_do_not_matter():
    scores = torch.tensor([[1, 4, 2, 3]])
    labels = torch.tensor([False, False, False, True])
    features = torch.stack([2.0 * scores, -1.0 * scores], dim=2)
    for given in (scores, scores.bfloat16(), features, (features,)):
        assert evidence_rank(given, labels).tolist() == [2.0]


def test_many_ties_stay_exact():
    scores = torch.zeros(1, 4000)
    labels = torch.arange(4000) < 2
    missed = 3998 * 3997 * 3996 / (4000 * 3999 * 3998)
    assert evidence_hit(scores, labels, k=3).item() == pytest.approx(1 - missed)
    assert evidence_rank(scores, labels).item() == pytest.approx(4001 / 3)
    assert evidence_f1(scores, labels).item() == pytest.approx(1 / 2000)


def test_more_tokens_than_there_are_find_all_evidence(tied):
    assert evidence_hit(*tied, k=99).tolist() == [1.0] * len(TIED)


SCORES, LABELS = torch.rand(2, 4), torch.tensor([[1, 0, 0, 0], [0, 1, 1, 0]]).bool()
NONE = torch.zeros(2, 4, dtype=torch.bool)


@pytest.mark.parametrize(
    ("given", "masks", "words"),
    [
        ((SCORES, NONE), {}, "example 0 has no evidence"),
        ((SCORES, LABELS & torch.tensor([[True], [False]])), {}, "example 1 has no"),
        ((SCORES, LABELS), {"keep": LABELS & ~LABELS[0]}, "evidence of example 1"),
        ((SCORES, LABELS), {"padding": LABELS[0]}, "evidence of example 0 has tokens"),
        ((SCORES * torch.nan, LABELS), {}, "example 0 hold NaN"),
        ((SCORES, LABELS[:, :3]), {}, "evidence has shape"),
        (
            (SCORES, LABELS.float()),
            {},
            "evidence has shape .* torch.float32; give bool",
        ),
        ((SCORES, LABELS), {"keep": NONE[:, 1:]}, "keep has shape"),
        ((SCORES[0], LABELS[0]), {}, "attributions have shapes"),
    ],
)
@pytest.mark.parametrize("name", METRICS)
def test_what_cannot_be_measured_is_refused(name, given, masks, words):
    with pytest.raises(ValueError, match=words):
        METRICS[name](*given, **masks)


@pytest.mark.parametrize("k", [0, -1, 1.5, True])
def test_k_that_is_no_number_of_tokens_is_refused(k):
    with pytest.raises(ValueError, match="positive integer"):
        evidence_hit(SCORES, LABELS, k=k)


@pytest.mark.parametrize("fraction", [0, -0.1, 1.01])
def test_fraction_that_is_no_share_is_refused(fraction):
    with pytest.raises(ValueError, match="share of the tokens"):
        evidence_f1(SCORES, LABELS, fraction=fraction)


def test_padding_ties_with_no_ranked_token():
    """Padding scores exactly 0, and so may the last of the tokens."""
    scores = torch.tensor([[0.5, 0.0, 0.0]])
    evidence = torch.tensor([[False, True, False]])
    padding = torch.tensor([[False, False, True]])
    rank = evidence_rank(scores, evidence, padding=padding)
    torch.testing.assert_close(rank, torch.tensor([2.0], dtype=torch.float64))
