"""Attention that is not known, in some of the layers, is named."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import pytest
import torch
import transformers
from entered_files import entered, files_of
from torch import Tensor, nn

from captum_attnflow import (
    AttnLRP,
    GeneralizedAttentionFlow,
    RelevanceFlow,
    UnsupportedAttentionError,
)

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
    [(unknown, place) for unknown in UNKNOWN for place in range(3)],
)
def test_a_layer_without_a_softmax_is_named(method, unknown, place):
    attends = [known] * 3
    attends[place] = UNKNOWN[unknown]
    model, ids = Model(attends), torch.randint(0, 60, (2, 7))
    if method is AttnLRP:  # which follows it
        with warnings.catch_warnings():
            warnings.filterwarnings("error", message=".*mix(es)? positions")
            method(model).attribute(ids, target=1)
        return
    with pytest.warns(UserWarning, match=r"(matmul|einsum) mix(es)? positions beside"):
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
        warnings.filterwarnings("error", message=".*mix(es)? positions")
        method(model).attribute(ids, target=1)


LONE: dict[str, Attend] = {
    "multiplied and summed": lambda q, k, v: (
        (q @ k.mT)[:, :, 0].sigmoid()[..., None] * v
    ).sum(2),
    "einsum": lambda q, k, v: torch.einsum(
        "bhk,bhkd->bhd", torch.einsum("bhd,bhkd->bhk", q[:, :, 0], k).sigmoid(), v
    ),
    "product": lambda q, k, v: ((q[:, :, :1] @ k.mT).sigmoid() @ v)[:, :, 0],
}


@pytest.mark.parametrize("method", [GeneralizedAttentionFlow, RelevanceFlow])
@pytest.mark.parametrize("token", [0, 3, 6])
@pytest.mark.parametrize("lone", LONE)
def test_a_last_layer_of_one_query_without_a_softmax_is_named(method, token, lone):
    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        mixed = LONE[lone](q.roll(-token, 2), k, v)
        return mixed[:, :, None].expand(-1, -1, 7, -1)

    model, ids = Model([known, known, attend]), torch.randint(0, 60, (2, 7))
    with pytest.warns(UserWarning, match="mix(es)? positions beside"):
        method(model).attribute(ids, target=1)


def fast_linear(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """As in the library of Katharopoulos et al. (2020): a divisor in one einsum."""
    q, k = q.exp(), k.exp()
    divisor = 1 / torch.einsum("bhid,bhd->bhi", q, k.sum(2))
    states = torch.einsum("bhjd,bhje->bhde", k, v)
    return torch.einsum("bhid,bhde,bhi->bhie", q, states, divisor)


# Of the query of the first token alone.
LINEAR_LONE: dict[str, Attend] = {
    "matmul": lambda q, k, v: q[:, :, :1].exp() @ (k.exp().mT @ v),
    "einsum": lambda q, k, v: torch.einsum(
        "bhd,bhde->bhe",
        q[:, :, 0].exp(),
        torch.einsum("bhjd,bhje->bhde", k.exp(), v),
    )[:, :, None],
    "sum": lambda q, k, v: (
        (k.exp()[..., None] * v[:, :, :, None]).sum(2) * q[:, :, 0].exp()[..., None]
    ).sum(-2, keepdim=True),
    "sum of features": lambda q, k, v: (
        (v[..., None] * k.exp()[:, :, :, None]).sum(2) * q[:, :, :1].exp()
    ).sum(-1)[:, :, None],
    "divided": lambda q, k, v: fast_linear(q[:, :, :1], k, v),
}


@pytest.mark.parametrize("method", [GeneralizedAttentionFlow, RelevanceFlow])
@pytest.mark.parametrize("linear", LINEAR_LONE)
def test_linear_attention_of_one_query_behind_all_layers_is_named(method, linear):
    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return LINEAR_LONE[linear](q, k, v).expand(-1, -1, 7, -1)

    model, ids = Model([known, known, attend]), torch.randint(0, 60, (2, 7))
    with pytest.warns(
        UserWarning, match="mix(es)? positions beside .* 2 layers: behind the last"
    ):
        method(model).attribute(ids, target=1)


@pytest.mark.parametrize("method", [GeneralizedAttentionFlow, RelevanceFlow])
def test_features_that_heads_multiply_are_a_head(method):
    """Those of bilinear pooling meet no query."""
    model = Model([known, known])

    def forward(ids: Tensor) -> Tensor:
        hidden: list[Tensor] = []
        handle = model.feed.register_forward_hook(lambda *a: hidden.append(a[2]))
        logits = model(ids)
        handle.remove()
        tokens = hidden[-1]
        return logits + (tokens.mT @ tokens)[:, :2].sum(-1)

    ids = torch.randint(0, 60, (2, 7))
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*mix(es)? positions")
        method(forward).attribute(ids, target=1)


def recurrent(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """As RWKV, written out."""
    state, outputs = torch.zeros_like(v[:, :, 0]), []
    for token in range(v.shape[2]):
        state = 0.9 * state + k[:, :, token].exp() * v[:, :, token]
        outputs.append(q[:, :, token].sigmoid() * state)
    return torch.stack(outputs, 2)


def written_in_place(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    mixed = torch.zeros_like(v)
    for token in range(v.shape[2]):
        mixed[:, :, token] = v[:, :, : token + 1].sum(2) * q[:, :, token].sigmoid()
    return mixed


def in_blocks(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Softmax attention as flash kernels compute it."""
    highest, total, mixed = torch.full_like(q[..., :1], -1e9), 0.0, 0.0
    for keys in (slice(0, 4), slice(4, 7)):
        scores = q @ k[:, :, keys].mT
        higher = torch.maximum(highest, scores.amax(-1, keepdim=True))
        weights, kept = (scores - higher).exp(), (highest - higher).exp()
        total = total * kept + weights.sum(-1, keepdim=True)
        mixed, highest = mixed * kept + weights @ v[:, :, keys], higher
    return mixed / total


FIXED = torch.linspace(-1, 1, 49).view(7, 7)
BETWEEN: dict[str, tuple[str, Attend]] = {
    "a recurrence": ("stack", recurrent),
    "a recurrence in place": ("copy_slices", written_in_place),
    "softmax in blocks": ("bmm", in_blocks),
    "a token shift": (
        "slice",
        lambda q, k, v: torch.cat([0 * v[:, :, :1], v[:, :, :-1]], 2),
    ),
    "a mean over tokens": ("mean", lambda q, k, v: q * v.mean(2, keepdim=True)),
    "a mixer": ("bmm", lambda q, k, v: FIXED @ v),
    "a linear layer over tokens": (
        "b?mm",
        lambda q, k, v: nn.functional.linear(v.mT, FIXED, FIXED[0]).mT,
    ),
    "neighbours": (
        "avg_pool2d",
        lambda q, k, v: nn.functional.avg_pool1d(v.flatten(0, 1).mT, 3, 1, 1).mT.view(
            v.shape
        ),
    ),
    "another order": ("index", lambda q, k, v: v[:, :, [1, 2, 3, 4, 5, 6, 0]]),
    "tokens read as features": (
        "unsafe_view",
        lambda q, k, v: v.reshape(2, 2, 4, 7).mT,
    ),
    "a softmax over tokens": ("softmax", lambda q, k, v: v * v.softmax(2)),
    "the highest so far": ("cummax", lambda q, k, v: v.cummax(2).values),
}


@pytest.mark.parametrize("method", [GeneralizedAttentionFlow, RelevanceFlow])
@pytest.mark.parametrize("place", [0, 1])
@pytest.mark.parametrize("between", BETWEEN)
def test_what_mixes_tokens_in_front_of_a_layer_is_named(method, place, between):
    """In any way: what a key hands on depends on other tokens than its own."""
    name, attend = BETWEEN[between]
    attends = [known, known]
    attends.insert(place, attend)
    model, ids = Model(attends), torch.randint(0, 60, (2, 7))
    where = ["in front of layer 1", "between layers 1 and 2"][place]
    words = rf"\b{name}\b.* mix(es)? positions beside .* 2 layers: {where}"
    with pytest.warns(UserWarning, match=words):
        method(model).attribute(ids, target=1)


@pytest.mark.parametrize("method", [GeneralizedAttentionFlow, RelevanceFlow])
def test_what_is_looked_at_but_mixes_nothing_is_not_named(method):
    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        parts = torch.stack(v.unbind(2), 2)[:, :, torch.arange(7)].flip(2).flip(2)
        return parts.where(parts > 0, torch.cat([v[:, :, :3], v[:, :, 3:]], 2))

    model, ids = Model([known, attend, known]), torch.randint(0, 60, (2, 7))
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*mix(es)? positions")
        method(model).attribute(ids, target=1)


# Softmax attention of the first token's query alone.
SOFTMAX_LONE: dict[str, Attend] = {
    "matmul": lambda q, k, v: known(q[:, :, :1], k, v),
    "sum": lambda q, k, v: (
        ((q[:, :, :1] @ k.mT)[:, :, 0] / 4).softmax(-1)[..., None] * v
    ).sum(2, keepdim=True),
    "einsum": lambda q, k, v: torch.einsum(
        "bhk,bhkd->bhd",
        (torch.einsum("bhd,bhkd->bhk", q[:, :, 0], k) / 4).softmax(-1),
        v,
    )[:, :, None],
}


@pytest.mark.parametrize("method", [GeneralizedAttentionFlow, RelevanceFlow])
@pytest.mark.parametrize("unknown", UNKNOWN)
@pytest.mark.parametrize("lone", SOFTMAX_LONE)
@pytest.mark.parametrize("before", [[], [known]], ids=["first", "second"])
def test_a_lone_query_is_found_behind_a_layer_without_a_softmax(
    method, unknown, lone, before
):
    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return SOFTMAX_LONE[lone](q, k, v).expand(-1, -1, 7, -1)

    ids, attends = torch.randint(0, 60, (2, 7)), [*before, UNKNOWN[unknown]]
    model = Model([*attends, attend]).double()
    every = Model([*attends, known]).double()
    every.load_state_dict(model.state_dict())
    place = "between layers 1 and 2" if before else "in front of layer 1"
    places = rf"beside .* {len(before) + 1} layers?: {place}"
    with pytest.warns(UserWarning, match=places):
        found = method(model).explain(ids, target=1).scores
    with pytest.warns(UserWarning, match=places):
        expected = method(every).explain(ids, target=1).scores
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("method", [GeneralizedAttentionFlow, RelevanceFlow])
@pytest.mark.parametrize("unknown", UNKNOWN)
def test_a_model_without_any_softmax_is_refused_by_what_mixes_its_tokens(
    method, unknown
):
    model = Model([UNKNOWN[unknown]] * 2)
    reason = r"mixed by (matmul|einsum) of two tensors .* without a softmax"
    with pytest.raises(UnsupportedAttentionError, match=reason):
        method(model).attribute(torch.randint(0, 60, (2, 7)), target=1)


@pytest.mark.parametrize("method", [GeneralizedAttentionFlow, RelevanceFlow])
@pytest.mark.parametrize("place", [0, 1, 2])
def test_products_that_are_multiplied_and_summed_are_named(method, place):
    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        weights = (q @ k.mT).sigmoid()
        return (weights[..., None] * v[:, :, None]).sum(-2)

    attends: list[Attend] = [known] * 3
    attends[place] = attend
    model, ids = Model(attends), torch.randint(0, 60, (2, 7))
    with pytest.warns(UserWarning, match="sum mix(es)? positions beside"):
        method(model).attribute(ids, target=1)


@pytest.mark.parametrize("method", [GeneralizedAttentionFlow, RelevanceFlow])
@pytest.mark.parametrize("pooling", ["summed", "einsum", "product"])
def test_gates_that_pool_the_tokens_are_a_head(method, pooling):
    """Each is of its own token alone, as features of experts are."""
    model, gate = Model([known, known]), nn.Linear(8, 1)

    def forward(ids: Tensor) -> Tensor:
        hidden: list[Tensor] = []
        handle = model.feed.register_forward_hook(lambda *a: hidden.append(a[2]))
        model(ids)
        handle.remove()
        tokens = hidden[-1]
        gates = gate(tokens).sigmoid()
        # As many experts as tokens, each a function of the token alone.
        experts = torch.stack([(tokens + i).tanh() for i in range(7)], 2)
        choice = experts.sum(-1).sigmoid()
        tokens = tokens + (choice[..., None] * experts).sum(2)
        pooled = {
            "summed": lambda: (gates * tokens).sum(1),
            "einsum": lambda: torch.einsum("btx,btd->bd", gates, tokens),
            "product": lambda: (gates.mT @ tokens)[:, 0],
        }[pooling]()
        return model.head(pooled)

    ids = torch.randint(0, 60, (2, 7))
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*mix(es)? positions")
        method(forward).attribute(ids, target=1)


def read_as_features(hidden: Tensor) -> Tensor:
    n_rows, n_tokens, n_features = hidden.shape
    return hidden.reshape(n_rows, n_features, n_tokens).transpose(1, 2)


def shifted(hidden: Tensor) -> Tensor:
    return torch.cat([hidden[:, -1:], hidden[:, :-1]], 1)


def recurrence(hidden: Tensor) -> Tensor:
    state, states = torch.zeros_like(hidden[:, 0]), []
    for token in reversed(range(hidden.shape[1])):
        state = (0.5 * state + hidden[:, token]).tanh()
        states.append(state)
    return torch.stack(states[::-1], 1)


def convolved(hidden: Tensor) -> Tensor:
    kernel = torch.linspace(-1, 1, 24).view(8, 1, 3)
    return nn.functional.conv1d(hidden.mT, kernel, padding=1, groups=8).mT


# What mixes tokens behind the last attention, with a name of the operation.
BEHIND: dict[str, tuple[str, Callable[[Tensor], Tensor]]] = {
    "a softmax": ("softmax", lambda hidden: hidden * hidden.softmax(1)),
    "tokens read as features": ("view", lambda hidden: read_as_features(hidden)),
    "features read as tokens": (
        "(unsafe_)?view",
        lambda hidden: hidden.mT.reshape(hidden.shape),
    ),
    "a mean": ("mean", lambda hidden: hidden + hidden.mean(1, keepdim=True)),
    "a mean in place of tokens": ("mean", lambda x: x - x.mean(1, keepdim=True)),
    "sums so far": ("cumsum", lambda hidden: hidden.flip(1).cumsum(1).flip(1)),
    "a Fourier transform": ("fft_", lambda hidden: torch.fft.fft(hidden, dim=1).real),
    "a recurrence": ("stack", recurrence),
    "a convolution": ("convolution", convolved),
    "a mixer": ("b?mm", lambda hidden: FIXED @ hidden),
}


def read_behind(
    model: Model, behind: Callable[[Tensor], Tensor]
) -> Callable[[Tensor], Tensor]:
    """A forward function that reads what is made of the last hidden states."""

    def forward(ids: Tensor) -> Tensor:
        hidden: list[Tensor] = []

        def note(module: nn.Module, taken: object, put_out: Tensor) -> None:
            hidden.append(taken[0] + put_out.relu())

        handle = model.feed.register_forward_hook(note)
        try:
            model(ids)
        finally:
            handle.remove()
        return behind(hidden[-1])

    return forward


@pytest.mark.parametrize("method", [GeneralizedAttentionFlow, RelevanceFlow])
@pytest.mark.parametrize("behind", BEHIND)
@pytest.mark.parametrize("token", [0, 3])
def test_what_mixes_tokens_behind_all_layers_is_named_if_one_is_read(
    method, behind, token
):
    name, mix = BEHIND[behind]
    model, ids = Model([known, known]), torch.randint(0, 60, (2, 7))
    forward = read_behind(model, lambda hidden: model.head(mix(hidden)[:, token]))
    words = rf"\b{name}.* mix(es)? positions beside .* 2 layers: behind the last layer"
    with pytest.warns(UserWarning, match=words):
        method(forward).attribute(ids, target=1)


MOVED: dict[str, Callable[[Tensor], Tensor]] = {
    "a roll": lambda hidden: hidden.roll(3, 1),
    "a shift": lambda hidden: shifted(shifted(shifted(hidden))),
    "another order": lambda hidden: hidden[:, [4, 5, 6, 0, 1, 2, 3]],
}


@pytest.mark.parametrize("method", [GeneralizedAttentionFlow, RelevanceFlow])
@pytest.mark.parametrize("move", MOVED)
@pytest.mark.parametrize("n_tokens", [7, 8])  # as many as features
def test_a_token_that_is_moved_behind_all_layers_has_the_scores_of_its_place(
    method, move, n_tokens
):
    if move == "another order" and n_tokens == 8:
        return
    model, ids = Model([known, known]).double(), torch.randint(0, 60, (2, n_tokens))
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*mix(es)? positions")
        found, expected = (
            method(read_behind(model, read)).explain(ids, target=1).scores
            for read in (
                lambda hidden: model.head(MOVED[move](hidden)[:, 0]),
                lambda hidden: model.head(hidden[:, -3]),
            )
        )
    assert bool(expected.any())
    torch.testing.assert_close(found, expected)


PAIRED: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "a sum": lambda start, end: start[:, :, None] + end[:, None],
    "a product": lambda start, end: start[:, :, None] * end[:, None],
    "an outer product": lambda start, end: torch.einsum("bi,bj->bij", start, end),
}


@pytest.mark.parametrize("method", [GeneralizedAttentionFlow, RelevanceFlow])
@pytest.mark.parametrize("pair", PAIRED)
@pytest.mark.parametrize("n_tokens", [7, 8])  # as many as features
def test_a_table_of_pairs_of_tokens_is_a_head(method, pair, n_tokens):
    """As of all starts and ends of answers: its scores are those of the one chosen."""
    model, ids = Model([known, known]).double(), torch.randint(0, 60, (2, n_tokens))
    chosen = [(1, 4), (2, 2)]

    def table(hidden: Tensor) -> Tensor:
        return PAIRED[pair](*model.head(hidden).unbind(-1))

    def one(hidden: Tensor) -> Tensor:
        pairs = [
            table(row[None])[0, i, j]
            for row, (i, j) in zip(hidden, chosen, strict=True)
        ]
        return torch.stack(pairs)

    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*mix(es)? positions")
        found = method(read_behind(model, table)).explain(ids, target=chosen).scores
        expected = method(read_behind(model, one)).explain(ids).scores
    assert bool(expected.any())
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("mixed", ["a mean", "sums so far", "a convolution", "a mixer"])
@pytest.mark.parametrize("pair", PAIRED)
def test_what_mixes_tokens_before_they_are_paired_is_named(mixed, pair):
    name, mix = BEHIND[mixed]
    model, ids = Model([known, known]), torch.randint(0, 60, (2, 7))
    forward = read_behind(
        model, lambda hidden: PAIRED[pair](*model.head(mix(hidden)).unbind(-1))
    )
    with pytest.warns(UserWarning, match=rf"\b{name}.* mix(es)? positions beside"):
        RelevanceFlow(forward).attribute(ids, target=(1, 4))


@pytest.mark.parametrize(
    ("mix", "n_tokens", "token", "label"),
    [
        (lambda hidden: hidden + 0.5 * hidden[:, :1], 7, 5, 0),
        (lambda hidden: hidden + shifted(hidden), 7, 5, 4),
        (lambda hidden: hidden + hidden.mean(1, keepdim=True), 2, 1, 0),
        (lambda hidden: hidden + 0.5 * hidden[:, :1], 3, 1, 0),
    ],
)
def test_classes_as_many_as_tokens_are_no_pairs_of_them(mix, n_tokens, token, label):
    """Though the number of the class be that of the token that is mixed in."""
    model, ids = Model([known, known]), torch.randint(0, 60, (2, n_tokens))
    head = nn.Linear(8, n_tokens)
    forward = read_behind(model, lambda hidden: head(mix(hidden)))
    with pytest.warns(UserWarning, match=r"mix(es)? positions .* behind the last"):
        RelevanceFlow(forward).attribute(ids, target=(token, label))


@pytest.mark.parametrize("method", [GeneralizedAttentionFlow, RelevanceFlow])
def test_what_mixes_behind_all_layers_has_the_scores_of_a_head_that_pools(method):
    """It is the same function: nothing is missing from scores."""
    model, ids = Model([known, known]).double(), torch.randint(0, 60, (2, 7))
    fixed = FIXED.double()
    mixed = read_behind(model, lambda x: model.head((fixed @ x)[:, 2]))
    pooled = read_behind(model, lambda x: model.head((fixed[2, :, None] * x).sum(1)))
    with pytest.warns(UserWarning, match=r"mixes positions.* as for a head that pools"):
        found = method(mixed).explain(ids, target=1).scores
    expected = method(pooled).explain(ids, target=1).scores
    assert bool(expected.any())
    torch.testing.assert_close(found, expected)


def test_a_norm_over_tokens_behind_all_layers_is_named():
    """Of flows along gradients: rules take the factors of a norm for constants."""
    model, ids = Model([known, known]), torch.randint(0, 60, (2, 7))
    forward = read_behind(
        model, lambda hidden: nn.functional.layer_norm(hidden, hidden.shape[1:])[:, 0]
    )
    with pytest.warns(UserWarning, match="native_layer_norm mix(es)? positions"):
        GeneralizedAttentionFlow(forward).attribute(ids, target=1)


@pytest.mark.parametrize("recurrent", [nn.GRU, nn.LSTM, nn.RNN])
@pytest.mark.parametrize("both_ways", [False, True])
def test_a_recurrent_layer_behind_all_layers_is_named(recurrent, both_ways):
    model, ids = Model([known, known]), torch.randint(0, 60, (2, 7))
    layer = recurrent(8, 8, batch_first=True, bidirectional=both_ways)
    forward = read_behind(model, lambda hidden: layer(hidden)[0][:, 5])
    name = layer.mode.lower()  # as propagation rules name it, too
    with pytest.warns(UserWarning, match=f"^{name} mixes positions .*: behind the las"):
        GeneralizedAttentionFlow(forward).attribute(ids, target=1)


def test_tokens_that_are_classified_behind_a_recurrence_are_named():
    """The target takes the token, not the model."""
    model, ids = Model([known, known]), torch.randint(0, 60, (2, 7))
    forward = read_behind(model, lambda hidden: model.head(recurrence(hidden)))
    with pytest.warns(UserWarning, match=r"mix(es)? positions .*: behind the last"):
        GeneralizedAttentionFlow(forward).attribute(ids, target=(4, 1))


def by_learned_query(hidden: Tensor) -> Tensor:
    weights = (hidden @ torch.linspace(-1, 1, 8)).softmax(1)
    return (weights[..., None] * hidden).sum(1)


def by_experts(hidden: Tensor) -> Tensor:
    """Each token by the expert of its choice, gathered and put back."""
    tokens, mixed = hidden.flatten(0, 1), torch.zeros_like(hidden.flatten(0, 1))
    choice = tokens[:, 0] > tokens[:, 1]
    for expert in (False, True):
        (places,) = (choice == expert).nonzero(as_tuple=True)
        mixed.index_add_(0, places, (tokens[places] + expert).tanh())
    return (hidden + mixed.view_as(hidden))[:, 0]


SHOWN = torch.tensor([[1.0] * 7, [1.0] * 5 + [0.0] * 2])[..., None]
HEADS: dict[str, Callable[[Tensor], Tensor]] = {
    "first token": lambda hidden: hidden[:, 0],
    "first token, dense": lambda hidden: hidden[:, 0].tanh() * 2,
    "mean": lambda hidden: hidden.mean(1),
    "mean under a mask": lambda hidden: (hidden * SHOWN).sum(1) / SHOWN.sum(1),
    "mean without the first": lambda hidden: hidden[:, 1:].mean(1),
    "maximum": lambda hidden: hidden.max(1).values,
    "maximum under a mask": lambda x: x.masked_fill(SHOWN == 0, -1e4).amax(1),
    "first and mean": lambda x: x[:, 0].tanh() + x.tanh().mean(1) + x.amax(1),
    "last of each": lambda hidden: hidden[torch.arange(2), torch.tensor([6, 4])],
    "gathered": lambda hidden: hidden.gather(
        1, torch.tensor([6, 4]).view(2, 1, 1).expand(2, 1, 8)
    )[:, 0],
    "by a mask": lambda hidden: hidden[torch.arange(7).eq(3).expand(2, 7)],
    "final norm, last": lambda x: nn.functional.layer_norm(x, (8,))[:, -1:].flatten(1),
    "learned query": by_learned_query,
    "learned query, product": lambda hidden: (
        (hidden @ torch.ones(8, 1)).softmax(1).mT @ hidden
    )[:, 0],
    "softmax of each feature": lambda hidden: (hidden * hidden.softmax(1)).mean(1),
    "all, flattened": lambda hidden: (
        hidden.flatten(1)[:, :8] + hidden.flatten(1)[:, 8:16]
    ),
    "two tokens": lambda hidden: hidden[:, 2] * hidden[:, 4],
    "pair, joined": lambda x: torch.cat([x[:, 2], x[:, 4]], -1)[:, 4:12],
    "experts": by_experts,
    "in two halves": lambda x: torch.cat([x[:, :3].relu(), x[:, 3:].relu()], 1)[:, 1],
    "batch norm": lambda x: nn.functional.batch_norm(
        x.mT, torch.zeros(8), torch.ones(8)
    ).mT[:, 0],
    "a convolution over one token": lambda x: nn.functional.conv1d(
        x.mT, torch.ones(8, 8, 1)
    ).mT[:, 0],
}


@pytest.mark.parametrize("method", [GeneralizedAttentionFlow, RelevanceFlow])
@pytest.mark.parametrize("head", HEADS)
def test_a_head_is_not_named(method, head):
    model, ids = Model([known, known]), torch.randint(0, 60, (2, 7))
    forward = read_behind(model, lambda hidden: model.head(HEADS[head](hidden)))
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*mix(es)? positions")
        method(forward).attribute(ids, target=1)


@pytest.mark.parametrize("n_rows", [3, 5, 6])
def test_a_mean_of_some_tokens_is_a_head_where_rows_are_as_many_as_tokens(n_rows):
    model, ids = Model([known, known]), torch.randint(0, 60, (n_rows, 5))
    forward = read_behind(model, lambda hidden: model.head(hidden[:, 1:].mean(1)))
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*mix(es)? positions")
        GeneralizedAttentionFlow(forward).attribute(ids, target=1)


@pytest.mark.parametrize("n_rows", [3, 5])
@pytest.mark.parametrize("method", [GeneralizedAttentionFlow, RelevanceFlow])
def test_layers_with_the_tokens_first_mix_nothing_beside_attention(method, n_rows):
    embedding, head = nn.Embedding(60, 8), nn.Linear(8, 2)
    layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0)
    encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False).eval()
    places = torch.randn(5, 1, 8)

    def forward(ids: Tensor) -> Tensor:
        scores: Tensor = head(encoder(embedding(ids.t()) + places)[0])
        return scores

    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*mix(es)? positions")
        method(forward).attribute(torch.randint(0, 60, (n_rows, 5)), target=1)


@pytest.mark.parametrize("n_labels", [2, 7])
@pytest.mark.parametrize("head_size", [4, 7])
def test_tokens_that_are_classified_one_by_one_are_not_named(n_labels, head_size):
    """Whatever is as many as the tokens by chance."""
    model = Model([known, known], head_size)
    labels = nn.Linear(2 * head_size, n_labels)
    forward = read_behind(model, labels)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*mix(es)? positions")
        GeneralizedAttentionFlow(forward).attribute(
            torch.randint(0, 60, (2, 7)), target=(4, 1)
        )


@pytest.mark.parametrize("method", [GeneralizedAttentionFlow, RelevanceFlow])
@pytest.mark.parametrize("place", [0, 1])
def test_what_passes_beside_attention_is_named(method, place):
    """It mixes tokens of the residual stream, not of what the attention mixed."""
    attends: list[Attend] = [known, known]
    attends[place] = lambda q, k, v: known(q, k, v) + v.roll(1, 2)
    model, ids = Model(attends), torch.randint(0, 60, (2, 7))
    where = f"beside the attention of layer {place + 1}"
    with pytest.warns(UserWarning, match=f"^roll mix(es)? positions .*: {where}"):
        method(model).attribute(ids, target=1)


@pytest.mark.parametrize("method", [GeneralizedAttentionFlow, RelevanceFlow])
@pytest.mark.parametrize("head", [name for name in HEADS if "mask" not in name])
def test_a_head_is_not_named_where_tokens_are_as_many_as_features(method, head):
    """A linear layer may then be one over tokens, so that it is computed."""
    model, ids = Model([known, known]), torch.randint(0, 60, (2, 8))
    forward = read_behind(model, lambda hidden: model.head(HEADS[head](hidden)))
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*mix(es)? positions")
        method(forward).attribute(ids, target=1)


@pytest.mark.parametrize("place", [0, 1, 2])
def test_a_shift_is_named_where_tokens_are_as_many_as_features(place):
    attends: list[Attend] = [known, known]
    attends.insert(place, lambda q, k, v: v.roll(1, 2))
    where = ["in front of layer 1", "between layers 1 and 2", "behind the last layer"]
    with pytest.warns(UserWarning, match=rf"roll.* positions .*: {where[place]}\."):
        RelevanceFlow(Model(attends)).attribute(torch.randint(0, 60, (2, 8)), target=1)


class OfAnySize(nn.Module):
    """Two layers, with something before the second."""

    def __init__(self, n_heads: int, width: int, is_residual: bool, mix) -> None:
        super().__init__()
        self.embedding = nn.Embedding(60, width)
        self.maps = nn.ModuleList(nn.Linear(width, 3 * width) for _ in range(2))
        self.head, self.n_heads = nn.Linear(width, 2), n_heads
        self.is_residual, self.mix = is_residual, mix

    def forward(self, ids: Tensor) -> Tensor:
        hidden = self.embedding(ids)
        for number, project in enumerate(self.maps):
            hidden = self.mix(hidden) if number else hidden
            q, k, v = (
                part.unflatten(-1, (self.n_heads, -1)).transpose(1, 2)
                for part in project(hidden).chunk(3, -1)
            )
            mixed = known(q, k, v).transpose(1, 2).flatten(2)
            hidden = (hidden + mixed if self.is_residual else mixed).tanh()
        return self.head(hidden[:, 0])


def heads_for_tokens(hidden: Tensor) -> Tensor:
    return hidden.unflatten(-1, (4, -1)).transpose(1, 2).reshape(hidden.shape)


@pytest.mark.parametrize("method", [GeneralizedAttentionFlow, RelevanceFlow])
@pytest.mark.parametrize("is_residual", [False, True])
@pytest.mark.parametrize(
    ("sizes", "mix"),
    [  # rows, tokens, heads, features
        ((2, 4, 4, 8), heads_for_tokens),
        ((4, 4, 4, 8), heads_for_tokens),
        ((2, 8, 1, 8), lambda hidden: hidden.mT),
        ((2, 8, 2, 8), lambda hidden: hidden.mT),
        ((4, 4, 4, 4), lambda hidden: hidden.mT),
        ((4, 4, 4, 4), lambda hidden: hidden.roll(1, 1)),
        ((4, 4, 1, 8), lambda hidden: hidden + hidden.mean(1, keepdim=True)),
    ],
)
def test_mixing_is_seen_where_other_axes_are_as_long_as_the_tokens(
    method, is_residual, sizes, mix
):
    n_rows, n_tokens, n_heads, width = sizes
    torch.manual_seed(0)
    model = OfAnySize(n_heads, width, is_residual, mix)
    ids = torch.randint(0, 60, (n_rows, n_tokens))
    with pytest.warns(UserWarning, match="mix(es)? positions .*: between layers 1 and"):
        method(model).attribute(ids, target=1)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*mix(es)? positions")
        method(OfAnySize(n_heads, width, is_residual, nn.Tanh())).attribute(
            ids, target=1
        )


def as_many_features_as_tokens(n_layers: int) -> tuple[nn.Module, list[nn.Module]]:
    model = Model([known] * n_layers)
    return model, list(model.maps)


def experts(n_layers: int) -> tuple[nn.Module, list[nn.Module]]:
    model = transformers.MixtralForCausalLM(
        transformers.MixtralConfig(
            vocab_size=60,
            hidden_size=16,
            intermediate_size=16,
            num_hidden_layers=n_layers,
            num_attention_heads=2,
            num_key_value_heads=2,
            num_local_experts=2,
            attn_implementation="eager",
        )
    )
    return model.eval(), [layer.self_attn.v_proj for layer in model.model.layers]


@pytest.mark.parametrize("make", [as_many_features_as_tokens, experts])
def test_the_work_grows_with_the_layers_not_with_their_square(make):
    """Counted are the gradients that arrive in front of the layers' attention."""

    def work(n_layers: int) -> int:
        model, layers = make(n_layers)
        n_gradients = 0

        def count(gradient: Tensor) -> None:
            nonlocal n_gradients
            n_gradients += 1

        def watch(layer: nn.Module, taken: tuple[Tensor, ...], put_out: Tensor) -> None:
            if put_out.requires_grad:
                put_out.register_hook(count)

        for layer in layers:
            layer.register_forward_hook(watch)

        def forward(ids: Tensor) -> Tensor:
            output = model(ids)
            return output if isinstance(output, Tensor) else output.logits[:, -1]

        ids = torch.randint(0, 60, (1, 8))
        GeneralizedAttentionFlow(forward).attribute(ids, target=1)
        return n_gradients

    few, more, many = work(4), work(8), work(12)
    assert 0 < many - more == more - few


def test_operations_that_mix_nothing_are_not_named():
    """Beside a convolution over tokens: joined heads, and products within a token."""

    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        weights = q.unflatten(-1, (2, 2)).tanh()
        alone = weights @ k.unflatten(-1, (2, 2))
        kernel = torch.linspace(-1, 1, 12).view(4, 1, 3)
        mixed = nn.functional.conv1d(v.flatten(0, 1).mT, kernel, padding=1, groups=4)
        joined = torch.cat([alone.flatten(-2), mixed.mT.view(v.shape)], 1)
        return joined[:, :2] + joined[:, 2:]

    model, ids = Model([known, attend, known]), torch.randint(0, 60, (2, 7))
    with pytest.warns(UserWarning, match="^convolution mixes positions beside"):
        GeneralizedAttentionFlow(model).attribute(ids, target=1)


@pytest.mark.parametrize("n_tokens", [7, 9])
def test_nothing_is_computed_where_nothing_may_mix(n_tokens):
    """Also where heads have as many features as there are tokens, such as 64."""
    attend = nn.functional.scaled_dot_product_attention
    model = Model([attend, attend], head_size=7)
    ids = torch.randint(0, 60, (2, n_tokens))
    method = GeneralizedAttentionFlow(model)
    files = files_of(entered(lambda: method.attribute(ids, target=1)))
    assert "capture/graph.py" in files
    assert "capture/mixing.py" not in files


def test_places_are_those_of_the_layers_that_they_name():
    """In a decoder behind an encoder, beside a last layer, and in mini-batches."""
    ids = torch.randint(0, 60, (2, 7))
    encoder, decoder = Model([known, known]), Model([known])

    def places(forward: Callable[[Tensor], Tensor]) -> str:
        with pytest.warns(UserWarning, match="mix(es)? positions") as caught:
            GeneralizedAttentionFlow(forward).attribute(ids, target=1)
        (words,) = {str(one.message) for one in caught if "mix" in str(one.message)}
        return words.partition("which has ")[2].partition(". ")[0]

    def decode(ids: Tensor, mix_own: bool, mix_crossed: bool) -> Tensor:
        states: list[Tensor] = []
        handle = encoder.feed.register_forward_hook(lambda *a: states.append(a[2]))
        encoder(ids)
        handle.remove()
        crossed = states[-1] + states[-1].cumsum(1) if mix_crossed else states[-1]
        hidden = decoder.embedding(ids)
        hidden = hidden.cumsum(1) if mix_own else hidden
        for keys in (hidden, crossed):
            hidden = hidden + known(hidden, keys, keys)
        return decoder.head(hidden[:, 0])

    assert places(lambda ids: decode(ids, True, False)) == (
        "4 layers: in front of layer 3"
    )
    assert places(lambda ids: decode(ids, False, True)) == (
        "4 layers: between layers 2 and 4"
    )

    between = Model([known, lambda q, k, v: v.cumsum(2), known])
    assert places(lambda ids: torch.cat([between(row) for row in ids.split(1)])) == (
        "2 layers: between layers 1 and 2"
    )
    both = Model([lambda q, k, v: v.cumsum(2), known, lambda q, k, v: v.flip(2)])
    assert places(both) == (
        "1 layer: cumsum in front of layer 1, flip behind the last layer"
    )


@pytest.mark.parametrize("token", [0, 3])
def test_a_token_that_is_read_beside_the_layers_is_named(token):
    """The network reads the output at the first token alone."""
    model = Model([known, known])

    def of_one(embeddings: Tensor) -> Tensor:
        model.embedding.forward = lambda ids: embeddings  # type: ignore[method-assign]
        return model(embeddings[..., 0]) + model.head(embeddings[:, token])

    embeddings = torch.randn(2, 7, 8)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        RelevanceFlow(of_one).attribute(embeddings, target=1)
    words = "select mixes positions beside the attention that was captured, which has "
    words += "2 layers: beside the attention of layer 2"
    assert [words in str(one.message) for one in caught] == [True] * bool(token)
