"""Normalised AOPC and its bounds, against all orders of the tokens."""

from __future__ import annotations

from functools import cache, partial
from itertools import permutations

import pytest
import torch
from models import bert
from reference import faithfulness as reference

from captum_attnflow import metrics

PAD, CLS, SEP, MASK = 0, 1, 2, 3
TEXTS = [
    ([11, 12, 13, 14, 15], [0.5, 0.1, -0.3, 0.9, 0.2]),
    ([21, 22, 23, 24, 25, 26], [0.5, 0.5, 0.1, 0.5, 0.1, 0.0]),  # ties
    ([31, 32], [0.1, 0.7]),
    ([41], [0.7]),  # a single token
    ([51, 52, 51], [-1.0, -2.0, -1.0]),
    ([], []),  # special tokens only
]
TARGETS = [1, 0, 1, 0, 1, 0]
EXACT = 20  # as many sets of three of six tokens as there are

both_removals = pytest.mark.parametrize("removal", ["replace", "delete"])


@pytest.fixture(scope="module")
def model():
    model = bert()
    model.resize_token_embeddings(60)
    return model.double()


@pytest.fixture(scope="module")
def batch():
    width = 2 + max(len(ids) for ids, _ in TEXTS)
    ids = torch.full((len(TEXTS), width), PAD)
    scores = torch.full((len(TEXTS), width), 5.0)
    for row, (text, text_scores) in enumerate(TEXTS):
        ids[row, : len(text) + 2] = torch.tensor([CLS, *text, SEP])
        scores[row, 1 : len(text) + 1] = torch.tensor(text_scores)
    return ids, scores


@pytest.fixture(scope="module")
def arguments(batch, model):
    ids, _ = batch
    return {
        "forward_func": lambda ids, mask: model(ids, attention_mask=mask).logits,
        "inputs": ids,
        "baselines": MASK,
        "target": TARGETS,
        "additional_forward_args": (ids != PAD).long(),
        "keep": (ids == CLS) | (ids == SEP),
        "padding": ids == PAD,
    }


@pytest.fixture(scope="module")
def orders(model):
    """AOPC of every order of a text's tokens, the text alone."""

    @cache
    def probability(target, ids):
        with torch.no_grad():
            return model(torch.tensor([ids])).logits.softmax(-1)[0, target].item()

    @cache
    def orders(row, removal, with_last=False):
        text, target = TEXTS[row][0], TARGETS[row]
        return {
            order: reference.aopc_of_order(
                partial(probability, target),
                [CLS, *text, SEP],
                order,
                MASK if removal == "replace" else None,
                with_last,
            )
            for order in permutations(range(1, 1 + len(text)))
        }

    return orders


def expected_aopc(row, aopc_of):
    """Mean over the orders that the scores allow."""
    scores = [9, *TEXTS[row][1], 9]
    allowed = reference.orders(range(1, 1 + len(TEXTS[row][0])), scores)
    return reference.mean([aopc_of[order] for order in allowed])


@both_removals
@pytest.mark.parametrize("internal_batch_size", [1, 7, None])
def test_wide_beams_find_the_bounds_over_all_orders(
    arguments, orders, removal, internal_batch_size
):
    lower, upper = metrics.aopc_bounds(
        **arguments,
        beam_width=EXACT,
        removal=removal,
        internal_batch_size=internal_batch_size,
    )
    found = [orders(row, removal).values() for row in range(len(TEXTS))]
    for bound, extreme in ((lower, min), (upper, max)):
        wanted = torch.tensor([extreme(values) for values in found]).double()
        torch.testing.assert_close(bound, wanted, rtol=1e-6, atol=1e-9)


@both_removals
def test_value_is_the_place_of_aopc_between_the_bounds(
    arguments, batch, orders, removal
):
    given = metrics.naopc(
        **arguments, attributions=batch[1], beam_width=EXACT, removal=removal
    )
    for row in range(len(TEXTS)):
        aopc_of = orders(row, removal)
        low, high = min(aopc_of.values()), max(aopc_of.values())
        value = expected_aopc(row, aopc_of)
        wanted = (value - low) / (high - low) if high > low else 1.0
        assert given[row].item() == pytest.approx(wanted, rel=1e-6, abs=1e-9)
        assert -1e-9 <= given[row] <= 1 + 1e-9


def test_the_step_that_removes_all_tokens_drops_out_of_the_papers_value(
    arguments, batch, orders
):
    given = metrics.naopc(**arguments, attributions=batch[1], beam_width=EXACT)
    for row in (0, 1, 2, 4):
        aopc_of = orders(row, "replace", with_last=True)
        low, high = min(aopc_of.values()), max(aopc_of.values())
        wanted = (expected_aopc(row, aopc_of) - low) / (high - low)
        assert given[row].item() == pytest.approx(wanted, rel=1e-6)


@both_removals
def test_best_and_worst_orders_are_one_and_zero(arguments, orders, removal):
    for extreme, wanted in ((max, 1), (min, 0)):
        attributions = torch.zeros(arguments["inputs"].shape)
        for row in range(len(TEXTS)):
            aopc_of = orders(row, removal)
            for rank, token in enumerate(extreme(aopc_of, key=aopc_of.__getitem__)):
                attributions[row, token] = -rank
        value = metrics.naopc(
            **arguments, attributions=attributions, beam_width=EXACT, removal=removal
        )
        several = torch.tensor([0, 1, 2, 4])
        torch.testing.assert_close(
            value[several], torch.full((4,), wanted).double(), rtol=0, atol=1e-6
        )


@both_removals
def test_narrow_beams_lie_within_the_exact_bounds(arguments, orders, removal):
    for width in (1, 2, 5):
        lower, upper = metrics.aopc_bounds(
            **arguments, beam_width=width, removal=removal
        )
        for row in range(len(TEXTS)):
            values = orders(row, removal).values()
            assert min(values) - 1e-9 <= lower[row] <= upper[row]
            assert upper[row] <= max(values) + 1e-9


def test_a_beam_of_one_takes_the_best_token_of_each_step(model, arguments):
    _, upper = metrics.aopc_bounds(**arguments, beam_width=1)
    ids, target = [CLS, *TEXTS[0][0], SEP], TARGETS[0]

    def probability(gone):
        left = [MASK if t in gone else token for t, token in enumerate(ids)]
        with torch.no_grad():
            return model(torch.tensor([left])).logits.softmax(-1)[0, target].item()

    gone, falls = (), []
    while len(gone) < 4:
        left = [(*gone, t) for t in range(1, 6) if t not in gone]
        gone = min(left, key=probability)
        falls.append(probability(()) - probability(gone))
    assert upper[0].item() == pytest.approx(sum(falls) / 4)


def test_texts_of_one_token_have_no_order_that_is_better(arguments, batch):
    lower, upper = metrics.aopc_bounds(**arguments)
    value = metrics.naopc(**arguments, attributions=batch[1])
    for row in (3, 5):
        assert lower[row] == upper[row] == 0
        assert value[row] == 1


def test_bounds_that_are_given_are_those_that_would_be_found(arguments, batch):
    bounds = metrics.aopc_bounds(**arguments)
    found = metrics.naopc(**arguments, attributions=batch[1], seed=3)
    given = metrics.naopc(**arguments, attributions=batch[1], seed=3, bounds=bounds)
    assert torch.equal(found, given)


@both_removals
def test_bounds_do_not_depend_on_batch_company(arguments, removal):
    together = metrics.aopc_bounds(**arguments, removal=removal)
    rows = ("inputs", "keep", "padding", "additional_forward_args")
    for row in range(len(TEXTS)):
        length = 2 + len(TEXTS[row][0])
        alone = {name: arguments[name][row : row + 1, :length] for name in rows}
        bounds = metrics.aopc_bounds(
            **{**arguments, **alone, "target": TARGETS[row]}, removal=removal
        )
        for mine, theirs in zip(bounds, together, strict=True):
            assert torch.equal(mine, theirs[row : row + 1])


def test_a_step_is_one_forward_pass_of_distinct_sets(arguments):
    passes = []

    def watching(ids, mask):
        passes.append(sorted(map(tuple, ids.tolist())))
        return arguments["forward_func"](ids, mask)

    one = {
        name: arguments[name][1:2]
        for name in ("inputs", "keep", "padding", "additional_forward_args", "target")
    }
    metrics.aopc_bounds(**{**arguments, **one, "forward_func": watching})
    rows = [row for step in passes for row in step]
    assert len(passes) == 1 + 5  # the text, and steps up to the last but one token
    assert len(rows) == len(set(rows)) <= 5 * 6 * 7
    passes.clear()
    metrics.aopc_bounds(
        **{**arguments, **one, "forward_func": watching}, internal_batch_size=4
    )
    assert max(map(len, passes)) == 4
    assert sorted(row for step in passes for row in step) == sorted(rows)


def test_no_text_is_emptied_where_nothing_is_kept():
    lengths = []

    def forward(ids):
        lengths.append(ids.shape[1])
        return torch.stack([ids.float().mean(1), torch.zeros(len(ids))], 1)

    ids = torch.tensor([[4, 1, 3, 2]])
    best = metrics.naopc(
        forward, ids, ids.float(), target=0, beam_width=EXACT, removal="delete"
    )
    assert min(lengths) == 1
    assert best.item() == pytest.approx(1)


def test_bounds_of_an_additive_model_are_known():
    weights = torch.tensor([0.0, 0.3, 0.2, 0.1])

    def forward(ids):
        probability = 0.2 + weights[ids].sum(1)
        return torch.stack([1 - probability, probability], 1)

    setting = {"target": 1, "output": "probabilities", "baselines": 0}
    ids = torch.tensor([[2, 1, 3]])
    lower, upper = metrics.aopc_bounds(forward, ids, **setting)
    assert upper.item() == pytest.approx((0.3 + 0.5) / 2)
    assert lower.item() == pytest.approx((0.1 + 0.3) / 2)
    zeros = metrics.naopc(forward, ids, torch.zeros(1, 3), **setting)
    assert zeros.item() == pytest.approx(0.5)  # the expectation over all orders


def test_bad_arguments_are_told(arguments, batch):
    for wrong in (0, -1, 2.5):
        with pytest.raises(
            ValueError, match=rf"beam_width={wrong} must be an integer of"
        ):
            metrics.aopc_bounds(**arguments, beam_width=wrong)
    bounds = metrics.AOPCBounds(torch.zeros(2), torch.ones(2))
    with pytest.raises(ValueError, match=r"bounds have shape \(2,\) for 6 examples"):
        metrics.naopc(**arguments, attributions=batch[1], bounds=bounds)
    with pytest.raises(ValueError, match="attributions have shape"):
        metrics.naopc(**arguments, attributions=batch[1][:, 1:])
