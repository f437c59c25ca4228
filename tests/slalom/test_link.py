from __future__ import annotations

from math import log

import pytest
import torch

from captum_attnflow.slalom import (
    clamped,
    fits_both_readings,
    log_odds,
    recognise_link,
)
from captum_attnflow.slalom.link import link_outputs

LOGITS = torch.tensor([[0.3, 2.0, -1.0], [5.0, -2.0, 0.0]], dtype=torch.float64)
TWO = LOGITS[:, :2]
INDEX = torch.tensor([1, 0])


def by_hand(logits) -> list[float]:
    odds = []
    for row, chosen in zip(logits.softmax(-1).tolist(), INDEX.tolist(), strict=True):
        odds.append(log(row[chosen] / (1 - row[chosen])))
    return odds


@pytest.mark.parametrize("logits", [LOGITS, TWO])
def test_logits_become_log_odds_against_all_other_classes(logits):
    assert recognise_link(logits) == "logits"
    found = log_odds(logits, INDEX, "logits").tolist()
    assert found == pytest.approx(by_hand(logits))


@pytest.mark.parametrize("logits", [LOGITS, TWO])
def test_probabilities_and_their_logarithms_give_the_same_log_odds(logits):
    expected = log_odds(logits, INDEX, "logits")
    probabilities = logits.softmax(-1)
    assert recognise_link(probabilities) == "probabilities"
    found = log_odds(probabilities, INDEX, "probabilities")
    torch.testing.assert_close(found, expected)
    assert recognise_link(logits.log_softmax(-1)) == "logits"
    found = log_odds(logits.log_softmax(-1), INDEX, "logits")
    torch.testing.assert_close(found, expected)


def test_one_output_is_a_log_odds_or_a_probability():
    one, first = LOGITS[:, :1], torch.zeros(2, dtype=torch.int64)
    assert recognise_link(one) == "identity"
    for link in ("identity", "logits"):
        assert torch.equal(log_odds(one, first, link), one[:, 0])
    assert recognise_link(one.sigmoid()) == "probabilities"
    torch.testing.assert_close(
        log_odds(one.sigmoid(), first, "probabilities"), one[:, 0]
    )


def test_outputs_within_the_unit_interval_that_do_not_sum_to_one():
    """They are probabilities of several labels; scores that reach its ends are not."""
    assert recognise_link(torch.tensor([[0.2, 0.3], [0.9, 0.1]])) == "probabilities"
    assert recognise_link(torch.tensor([[0.2, 0.3], [1.0, 0.0]])) == "logits"


def test_probabilities_of_labels_that_do_not_exclude_each_other():
    """Of a multi-label model, or of some of the classes only."""
    probabilities = LOGITS.sigmoid()
    assert fits_both_readings(probabilities)
    assert not fits_both_readings(LOGITS.softmax(-1))
    assert not fits_both_readings(LOGITS)
    found = log_odds(probabilities, INDEX, "probabilities")
    torch.testing.assert_close(found, LOGITS.gather(1, INDEX[:, None])[:, 0])
    linked = link_outputs([probabilities], [(1,)], "auto")
    [caveat] = linked.caveats
    assert "in [0, 1] for all queries and do not sum to 1" in caveat
    assert linked.link == "probabilities"
    assert 'read by link="probabilities". Say by link=' in caveat
    assert link_outputs([probabilities], [(1,)], "probabilities").caveats == ()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16])
def test_certain_probabilities_stay_finite(dtype):
    certain = torch.tensor([[0.0, 1.0]], dtype=dtype)
    for index in (0, 1):
        odds = log_odds(certain, torch.tensor([index]), "probabilities")
        assert odds.isfinite().all()


def test_outputs_of_labels_that_may_apply_together_are_read_one_by_one():
    logits = 4 * LOGITS
    linked = link_outputs([logits], [(1,)], "auto", excluding=False)
    assert (linked.link, linked.caveats) == ("identity", ())
    assert torch.equal(linked.columns[0], logits[:, 1].double())
    # The outputs of the other labels say what those of this one are.
    mixed = torch.tensor([[0.4, -3.0], [0.6, 2.0]])
    linked = link_outputs([mixed], [(0,)], "auto", excluding=False)
    assert (linked.link, linked.caveats) == ("identity", ())
    # Where all may be both, it is open.
    linked = link_outputs([mixed.sigmoid()], [(0,)], "auto", excluding=False)
    [caveat] = linked.caveats
    assert caveat.startswith("the outputs per input lie in [0, 1] for all queries, wh")
    assert (linked.link, linked.columns[0].tolist()) == (
        "probabilities",
        pytest.approx(mixed[:, 0].tolist()),
    )


def test_outputs_of_one_label_that_do_not_sum_to_one_are_logits():
    logits = torch.tensor([[0.2, 0.9], [0.5, 0.1]])
    expected = log_odds(logits, torch.tensor([1, 1]), "logits")
    linked = link_outputs([logits], [(1,)], "auto", excluding=True)
    assert linked.link == "logits"
    assert torch.equal(linked.columns[0], expected)
    [caveat] = linked.caveats  # they may be of a model of each label on its own
    assert "do not sum to 1" in caveat
    assert 'by link="logits". Say by link= which it is: "probab' in caveat
    assert caveat.endswith('or "logits" for scores')
    assert link_outputs([8 * logits], [(1,)], "auto", excluding=True).caveats == ()
    assert link_outputs([logits], [(1,)], "logits", excluding=True).caveats == ()
    # Nothing known, they may be of labels that may apply together.
    linked = link_outputs([logits], [(1,)], "auto")
    assert linked.link == "probabilities"
    assert len(linked.caveats) == 1


@pytest.mark.parametrize("excluding", [True, False, None])
def test_shares_that_sum_to_one_mean_the_same_either_way(excluding):
    shares = LOGITS.softmax(-1)
    linked = link_outputs([shares], [(1,)], "auto", excluding)
    expected = log_odds(LOGITS, torch.full((len(LOGITS),), 1), "logits")
    torch.testing.assert_close(linked.columns[0], expected, atol=1e-5, rtol=1e-5)


def test_the_advice_on_certain_probabilities_holds_for_labels_of_each_kind():
    linked = link_outputs([torch.tensor([[1.0], [0.4]])], [(0,)], "probabilities")
    [caveat] = linked.caveats
    assert caveat.endswith('link="identity" for labels that do not exclude each other')


def test_probabilities_out_of_range_are_refused():
    with pytest.raises(ValueError, match=r"from -2 to 5.*identity"):
        log_odds(LOGITS, INDEX, "probabilities")


def test_small_probabilities_of_the_others_do_not_saturate():
    logits = torch.tensor([[0.0, 40.0], [60.0, 0.0]])
    first, second = torch.zeros(2, dtype=torch.int64), torch.ones(2, dtype=torch.int64)
    for index in (first, second):
        found = log_odds(logits.softmax(-1), index, "probabilities")
        expected = log_odds(logits, index, "logits")
        torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)
        assert not clamped(logits.softmax(-1), index, "probabilities").any()


def test_what_is_cut_off_is_told():
    index = torch.zeros(3, dtype=torch.int64)
    several = torch.tensor([[0.0, 1.0], [1.0, 0.0], [0.3, 0.7]])
    assert clamped(several, index, "probabilities").tolist() == [True, True, False]
    assert not clamped(several, index, "logits").any()
    one = several[:, :1]
    assert clamped(one, index, "probabilities").tolist() == [True, True, False]
