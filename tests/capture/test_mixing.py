"""Attention that is not known, in some of the layers, is named."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from captum_attnflow import AttnLRP, GeneralizedAttentionFlow, RelevanceFlow

Attend = Callable[[Tensor, Tensor, Tensor], Tensor]

UNKNOWN: dict[str, Attend] = {
    "sigmoid": lambda q, k, v: (q @ k.mT).sigmoid() @ v,
    "sigmoid, transposed": lambda q, k, v: (v.mT @ (k @ q.mT).sigmoid()).mT,
    "squared relu": lambda q, k, v: torch.einsum(
        "bhij,bhjd->bhid", torch.einsum("bhid,bhjd->bhij", q, k).relu() ** 2, v
    ),
    "linear": lambda q, k, v: q.exp() @ (k.exp().mT @ v),
    "linear, einsum": lambda q, k, v: torch.einsum(
        "bhid,bhde->bhie", q.exp(), torch.einsum("bhjd,bhje->bhde", k.exp(), v)
    ),
}


def known(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return (q @ k.mT / 4).softmax(-1) @ v


class Model(nn.Module):
    def __init__(self, attends: list[Attend], head_size: int = 4) -> None:
        super().__init__()
        self.attends, width = attends, 2 * head_size
        self.embedding = nn.Embedding(60, width)
        self.maps = nn.ModuleList(
            nn.Linear(width, 3 * width) for _ in range(len(attends))
        )
        self.feed = nn.Linear(width, width)
        self.head = nn.Linear(width, 2)

    def forward(self, ids: Tensor) -> Tensor:
        hidden = self.embedding(ids)
        for attend, project in zip(self.attends, self.maps, strict=True):
            q, k, v = (
                part.unflatten(-1, (2, -1)).transpose(1, 2)
                for part in project(hidden).chunk(3, -1)
            )
            hidden = hidden + 0.1 * attend(q, k, v).transpose(1, 2).flatten(2)
            hidden = hidden + self.feed(hidden).relu()
        return self.head(hidden[:, 0])


@pytest.mark.parametrize("method", [GeneralizedAttentionFlow, RelevanceFlow, AttnLRP])
@pytest.mark.parametrize(
    ("unknown", "place"),
    [
        (unknown, place)
        for unknown in UNKNOWN
        for place in range(3)
        # What sums over the tokens behind all layers may be a head.
        if place < 2 or "linear" not in unknown
    ],
)
def test_a_layer_without_a_softmax_is_named(method, unknown, place):
    attends = [known] * 3
    attends[place] = UNKNOWN[unknown]
    model, ids = Model(attends), torch.randint(0, 60, (2, 7))
    if method is AttnLRP:  # which follows it
        with warnings.catch_warnings():
            warnings.filterwarnings("error", message=".*mix positions")
            method(model).attribute(ids, target=1)
        return
    with pytest.warns(UserWarning, match=r"(matmul|einsum) mix positions beside"):
        method(model).attribute(ids, target=1)


@pytest.mark.parametrize("method", [GeneralizedAttentionFlow, RelevanceFlow])
@pytest.mark.parametrize(
    "attend",
    [
        known,
        lambda q, k, v: (v.mT @ (q @ k.mT).softmax(-1).mT).mT,
        lambda q, k, v: (
            (torch.einsum("bhid,bhjd->bhij", q, k) + (k @ q.mT).mT / 2).softmax(-1) @ v
        ),
    ],
)
def test_scores_of_as_many_features_as_tokens_are_no_mixing(method, attend):
    model, ids = Model([attend] * 3, head_size=7), torch.randint(0, 60, (2, 7))
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*mix positions")
        method(model).attribute(ids, target=1)
