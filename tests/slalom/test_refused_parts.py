"""Every part of SLALOM tells what it was given wrongly, in words of its own."""

from __future__ import annotations

import pytest
import torch

from captum_attnflow import slalom, texts
from captum_attnflow.slalom import QueryData, fit_slalom

IDS = torch.tensor([[5, 9, 30, 11], [8, 7, 6, 31]])
NOWHERE = torch.zeros(2, 4, dtype=torch.bool)
DATA = QueryData.pad([torch.eye(3, 2).double().clamp_min(0.5)], [torch.arange(3.0)])
MODEL = fit_slalom(DATA).model
DRAWN = {"types": [0, 1, 0], "n_queries": 4, "generator": torch.Generator()}
PLACED = {"n_positions": 8, "n_queries": 4, "generator": torch.Generator()}
LINKED = {"outputs": torch.rand(2, 3), "index": torch.tensor([0, 1]), "link": "logits"}
MASKED = {"keep": NOWHERE, "padding": NOWHERE}

GOOD = {
    texts.DeletableColumns: {"inputs": IDS, "additional": None, **MASKED},
    texts.ReplaceableInputs: {
        "inputs": IDS,
        "baselines": 0 * IDS,
        "additional": None,
        "tokens": IDS,
        **MASKED,
    },
    texts.DeletableWords: {"texts": ["so good"], "additional": None},
    texts.find_padding: {
        "forward_func": lambda ids, mask: ids,
        "n_inputs": 1,
        "additional": (~NOWHERE,),
        "shape": (2, 4),
    },
    texts.find_special_tokens: {
        "ids": IDS,
        "forward_func": len,
        "tokenizer": None,
    },
    texts.read_keep: {"keep": NOWHERE, "shape": (2, 4)},
    texts.targets_of_texts: {"target": [1, 0], "n_texts": 2},
    QueryData.pad: {
        "counts": [torch.ones(3, 2)],
        "outputs": [torch.ones(3)],
        "weights": [torch.ones(3)],
    },
    slalom.fit_slalom: {"data": DATA, "sink": False},
    slalom.r_squared: {"model": MODEL, "data": DATA},
    slalom.score_types: {
        "name": "value",
        "model": MODEL,
        "counts": torch.ones(1, 2),
    },
    slalom.recognise_link: {"outputs": torch.rand(2, 3)},
    slalom.fits_both_readings: {"outputs": torch.rand(2, 1)},
    slalom.log_odds: LINKED,
    slalom.clamped: LINKED,
    slalom.count_types: {"types": [0, 1], "queries": [(0, 1)]},
    slalom.draw_short: DRAWN,
    slalom.draw_deletions: DRAWN,
    slalom.draw_random_deletions: DRAWN,
    slalom.draw_halves: PLACED,
    slalom.draw_subsets: PLACED,
}
WRONG = {
    "None": None,
    "an integer": 3,
    "a name": "x",
    "integers": [1, 2],
    "a mapping": {},
    "sparse": IDS.double().to_sparse(),
    "meta": torch.empty(2, 4, device="meta"),
    "complex": torch.ones(2, 4, dtype=torch.complex64),
    "no rows": IDS[:0],
    "no columns": IDS[:, :0],
    "one dimension": IDS[0],
    "no dimension": torch.tensor(3),
    "nested": torch.nested.nested_tensor([torch.ones(3), torch.ones(2)]),
    "a column": torch.tensor([[1], [0]]),
    "generated ids": torch.tensor([[1, 0, 2, 3, 4]]),
    "NaN": torch.full((2, 4), torch.nan),
}


@pytest.mark.parametrize("part", GOOD, ids=lambda part: part.__qualname__)
def test_a_wrong_argument_is_taken_or_refused_in_words(part):
    part(**GOOD[part])
    told = []
    for argument in GOOD[part]:
        for wrong in WRONG.values():
            try:
                part(**{**GOOD[part], argument: wrong})
            except ValueError as error:
                told.append(str(error).lower())
    assert told
    for message in told:
        assert any(word in message for word in ("give ", "must", "remove"))


def test_a_text_without_queries_is_not_fitted():
    empty = QueryData.pad([torch.ones(0, 2).double()], [torch.ones(0)])
    with pytest.raises(ValueError, match="no query"):
        fit_slalom(empty)
