"""A last layer with the query of the read-out alone is that with all queries."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from attention_methods import METHODS as EVERY_METHOD
from torch import Tensor, nn

from captum_attnflow import (
    RelevanceFlow,
    UnsupportedAttentionError,
)

METHODS = {
    **EVERY_METHOD,
    "relevance flow, maximum": lambda f: RelevanceFlow(f, flow="maximum"),
}
every_method = pytest.mark.parametrize("method", METHODS)


def written_out(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return (q @ k.mT / q.shape[-1] ** 0.5).softmax(-1) @ v


ATTEND = {"written out": written_out, "fused": F.scaled_dot_product_attention}


class Model(nn.Module):
    """Layers of attention; the last has some queries or all, of the same output."""

    def __init__(
        self, n_layers: int, attend: Callable[..., Tensor], n_heads: int = 4
    ) -> None:
        super().__init__()
        self.embedding = nn.Embedding(60, 32)
        self.maps = nn.ModuleList(
            nn.ModuleList(nn.Linear(32, 32) for _ in range(5)) for _ in range(n_layers)
        )
        self.norm, self.head = nn.LayerNorm(32), nn.Linear(32, 2)
        self.attend, self.n_heads = attend, n_heads
        self.double().eval()

    def forward(self, ids: Tensor, position: Tensor, alone: bool) -> Tensor:
        hidden = self.embedding(ids)
        for number, (query, key, value, out, further) in enumerate(self.maps):
            before = hidden
            if alone and number == len(self.maps) - 1:
                hidden = hidden.gather(1, position[:, None, None].expand(-1, 1, 32))
            q, k, v = (
                project(tokens).unflatten(-1, (self.n_heads, -1)).transpose(1, 2)
                for project, tokens in (
                    (query, hidden),
                    (key, before),
                    (value, before),
                )
            )
            hidden = hidden + out(self.attend(q, k, v).transpose(1, 2).flatten(2))
            hidden = hidden + further(self.norm(hidden)).relu()
        if not alone:
            hidden = hidden.gather(1, position[:, None, None].expand(-1, 1, 32))
        return self.head(hidden[:, 0])


@every_method
@pytest.mark.parametrize("n_layers", [1, 2])
@pytest.mark.parametrize("attend", ATTEND)
@pytest.mark.parametrize("position", [(0, 0, 0), (6, 2, 4)])
def test_scores_are_those_of_the_model_with_all_queries(
    method, n_layers, attend, position
):
    model, ids = Model(n_layers, ATTEND[attend]), torch.randint(0, 60, (3, 7))
    expected, found = (
        METHODS[method](lambda ids, at, alone=alone: model(ids, at, alone))
        .explain(ids, target=1, additional_forward_args=(torch.tensor(position),))
        .scores
        for alone in (False, True)
    )
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-6)


@every_method
def test_every_target_has_its_scores(method):
    model, ids = Model(2, written_out), torch.randint(0, 60, (2, 7))
    at = torch.tensor([3, 0])
    expected, found = (
        [
            explanation.scores
            for explanation in METHODS[method](
                lambda ids, alone=alone: model(ids, at, alone)
            ).explain_targets(ids, [0, 1])
        ]
        for alone in (False, True)
    )
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-6)


def test_a_path_and_parts_of_a_batch_know_the_query_too():
    model, ids = Model(2, written_out), torch.randint(0, 60, (4, 7))
    at = torch.tensor([3, 0, 6, 1])
    expected, found = (
        RelevanceFlow(
            lambda ids, at, alone=alone: model(ids, at, alone), path_steps=2
        ).attribute(
            ids, 0, target=1, additional_forward_args=(at,), internal_batch_size=3
        )
        for alone in (False, True)
    )
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-6)


def test_a_decoder_has_the_query_alone_in_both_kinds_of_attention():
    class Decoder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.source, self.target = nn.Embedding(60, 32), nn.Embedding(60, 32)
            self.encode = nn.MultiheadAttention(32, 4, batch_first=True)
            self.own, self.cross = (
                nn.ModuleList(
                    nn.MultiheadAttention(32, 4, batch_first=True) for _ in range(2)
                )
                for _ in range(2)
            )
            self.head = nn.Linear(32, 2)
            self.double().eval()

        def forward(self, source: Tensor, target: Tensor, alone: bool) -> Tensor:
            source, target = self.source(source), self.target(target)
            source = source + self.encode(source, source, source)[0]
            for number, (own, cross) in enumerate(
                zip(self.own, self.cross, strict=True)
            ):
                query = target[:, -1:] if alone and number == 1 else target
                hidden = query + own(query, target, target)[0]
                target = hidden + cross(hidden, source, source)[0]
            return self.head(target[:, -1])

    model = Decoder()
    inputs = torch.randint(0, 60, (2, 6)), torch.randint(0, 60, (2, 4))
    for method in METHODS.values():
        expected, found = (
            method(lambda s, t, alone=alone: model(s, t, alone))
            .explain(inputs, target=1)
            .scores
            for alone in (False, True)
        )
        torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-6)


@every_method
def test_a_query_of_no_token_is_refused(method):
    """That of a learned vector, as SigLIP pools."""
    embedding, head = nn.Embedding(60, 32).double(), nn.Linear(32, 2).double()
    learned = nn.Parameter(torch.randn(1, 1, 32).double())

    def forward(ids: Tensor) -> Tensor:
        hidden = embedding(ids)
        hidden = hidden + written_out(hidden, hidden, hidden)
        return head(written_out(learned.expand(len(ids), -1, -1), hidden, hidden)[:, 0])

    with pytest.raises(UnsupportedAttentionError, match="attention pooling"):
        METHODS[method](forward).attribute(torch.randint(0, 60, (2, 7)), target=1)


@every_method
@pytest.mark.parametrize("n_rows", [1, 3])
def test_the_axis_of_the_query_may_be_added_behind_the_softmax(method, n_rows):
    """As where scores of the one query are written ``(B, H, T)``."""

    def added(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        if q.shape[2] > 1:
            return written_out(q, k, v)
        scores = torch.einsum("bhd,bhkd->bhk", q[:, :, 0], k) / q.shape[-1] ** 0.5
        return scores.softmax(-1)[:, :, None] @ v

    model, ids = Model(2, added), torch.randint(0, 60, (n_rows, 7))
    position = torch.zeros(n_rows, dtype=torch.long)
    one, every = (
        METHODS[method](
            lambda ids, alone=alone: model(ids, position[: len(ids)], alone)
        )
        for alone in (True, False)
    )
    torch.testing.assert_close(
        one.explain(ids, target=1).scores, every.explain(ids, target=1).scores
    )


# Of one query (B, H, D), keys and values (B, H, T, D).
WITHOUT_AXIS = {
    "multiplied and summed": lambda a, v: (a[..., None] * v).sum(2),
    "einsum": lambda a, v: torch.einsum("bhk,bhkd->bhd", a, v),
    "heads last": lambda a, v: torch.einsum(
        "bkh,bkhd->bhd", a.transpose(1, 2), v.transpose(1, 2)
    ),
    "heads last, summed": lambda a, v: (
        a.transpose(1, 2)[..., None] * v.transpose(1, 2)
    ).sum(1),
    "axis added": lambda a, v: (a[:, :, None] @ v)[:, :, 0],
}


@every_method
@pytest.mark.parametrize("mix", WITHOUT_AXIS)
@pytest.mark.parametrize("n_layers", [1, 2])
@pytest.mark.parametrize("position", [(0, 0, 0), (6, 2, 4)])
def test_a_query_without_an_axis_is_one(method, mix, n_layers, position):
    """The weights (B, H, T) weigh values as they are."""

    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        if q.shape[2] > 1:
            return written_out(q, k, v)
        scores = torch.einsum("bhqd,bhkd->bhk", q, k) / q.shape[-1] ** 0.5
        return WITHOUT_AXIS[mix](scores.softmax(-1), v)[:, :, None]

    model, ids = Model(n_layers, attend), torch.randint(0, 60, (3, 7))
    found, expected = (
        METHODS[method](lambda ids, at, alone=alone: model(ids, at, alone))
        .explain(ids, target=1, additional_forward_args=(torch.tensor(position),))
        .scores
        for alone in (True, False)
    )
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-6)


@every_method
@pytest.mark.parametrize("mix", ["summed", "einsum", "product"])
def test_one_head_needs_no_axis_of_heads(method, mix):
    """The weights of the query are (B, T)."""

    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        if q.shape[2] > 1:
            return (q @ k.mT).softmax(-1) @ v
        keys, values = k[:, 0], v[:, 0]
        weights = (keys @ q[:, 0].mT).squeeze(-1).softmax(-1)
        if mix == "product":
            return torch.bmm(weights[:, None], values)[:, None]
        if mix == "einsum":
            return torch.einsum("bk,bkd->bd", weights, values)[:, None, None]
        return (weights[..., None] * values).sum(1)[:, None, None]

    model, ids = Model(2, attend, n_heads=1), torch.randint(0, 60, (3, 7))
    at = torch.tensor([2, 0, 6])
    found, expected = (
        METHODS[method](lambda ids, alone=alone: model(ids, at, alone))
        .explain(ids, target=1)
        .scores
        for alone in (True, False)
    )
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-6)


@every_method
@pytest.mark.parametrize("n_heads", [1, 4])
@pytest.mark.parametrize("mix", ["summed", "einsum", "product"])
def test_heads_that_pool_by_what_they_learned_are_no_attention(method, mix, n_heads):
    """Also with axes as those of a lone query."""
    model, score = Model(2, written_out), nn.Linear(32, n_heads).double()
    position = torch.zeros(3, dtype=torch.long)
    hidden: list[Tensor] = []
    model.norm.register_forward_hook(lambda *args: hidden.append(args[2]))

    def forward(ids: Tensor, pooled: bool) -> Tensor:
        logits = model(ids, position, False)
        if not pooled:
            return hidden[-1].sum((1, 2), keepdim=True)[:, 0] + logits
        tokens = hidden[-1].unflatten(-1, (4, 8)).transpose(1, 2)
        weights = score(hidden[-1].tanh()).mT.softmax(-1)
        if mix == "product":
            mixed = weights[:, :, None] @ tokens
        elif mix == "einsum":
            mixed = torch.einsum("bhk,bhkd->bhd", weights.expand(-1, 4, -1), tokens)
        else:
            mixed = (weights[..., None] * tokens).sum(2)
        return model.head(mixed.reshape(3, 32))

    ids = torch.randint(0, 60, (3, 7))
    explanation = METHODS[method](lambda ids: forward(ids, True)).explain(ids, target=1)
    assert explanation.network.n_layers == 2
    assert (explanation.scores != 0).all()


@every_method
def test_a_query_whose_values_were_not_met_is_named(method):
    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        if q.shape[2] > 1:
            return written_out(q, k, v)
        weights = (q * k).sum(-1).softmax(-1)
        return torch.stack(
            [
                torch.stack(
                    [torch.mv(of_head.mT, w) for w, of_head in zip(ws, vs, strict=True)]
                )
                for ws, vs in zip(weights, v, strict=True)
            ]
        )[:, :, None]

    model, at = Model(2, attend), torch.zeros(3, dtype=torch.long)
    with pytest.warns(UserWarning, match="1 softmaxes"):
        METHODS[method](lambda ids: model(ids, at, True)).explain(
            torch.randint(0, 60, (3, 7)), target=1
        )
