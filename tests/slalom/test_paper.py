"""The paper's claim on synthetic linear data (Leemann et al. 2025).

Labels are drawn from additive log-odds: every word adds its weight. A transformer that
learned them is fitted by a SLALOM function and by a linear one, on sequences as long as
those it learned from. There the linear one is better; on longer ones SLALOM is, because
attention averages and the log-odds grow no further.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from captum_attnflow.slalom import (
    QueryData,
    SlalomModel,
    fit_slalom,
)

N_WORDS = 12
PAD = N_WORDS
LONGEST = 10


class Transformer(nn.Module):
    """Two layers of attention over word embeddings, read at a class token."""

    def __init__(self) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(32, 4, 64, dropout=0.0, batch_first=True)
        self.embedding = nn.Embedding(N_WORDS + 1, 32)
        self.first = nn.Parameter(torch.randn(1, 1, 32))
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Linear(32, 1)

    def forward(self, ids: Tensor) -> Tensor:
        first = self.first.expand(len(ids), 1, 32)
        hidden = torch.cat([first, self.embedding(ids)], 1)
        padding = torch.nn.functional.pad(ids == PAD, (1, 0))
        return self.head(self.encoder(hidden, src_key_padding_mask=padding)[:, 0])[:, 0]


def draw_sequences(n_sequences: int, shortest: int, longest: int) -> Tensor:
    ids = torch.randint(N_WORDS, (n_sequences, longest))
    lengths = torch.randint(shortest, longest + 1, (n_sequences, 1))
    return ids.masked_fill(torch.arange(longest) >= lengths, PAD)


def train_on_linear_data(weight: Tensor, n_steps: int) -> Transformer:
    model = Transformer()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    with_padding = torch.cat([weight, torch.zeros(1)])
    for _ in range(n_steps):
        ids = draw_sequences(128, 1, LONGEST)
        labels = torch.bernoulli(with_padding[ids].sum(1).sigmoid())
        loss = nn.functional.binary_cross_entropy_with_logits(model(ids), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model.eval()


@torch.no_grad()
def answers(model: Transformer, ids: Tensor) -> tuple[Tensor, Tensor]:
    """Word counts and log-odds of sequences."""
    counts = nn.functional.one_hot(ids, N_WORDS + 1).sum(1)[:, :N_WORDS].double()
    return counts, model(ids).double()


def fit_both(counts: Tensor, outputs: Tensor) -> tuple[SlalomModel, Tensor]:
    """Fit a SLALOM function, and the weights and intercept of a linear one."""
    design = torch.cat([counts, torch.ones(len(counts), 1)], 1)
    linear = torch.linalg.lstsq(design, outputs[:, None]).solution[:, 0]
    return fit_slalom(QueryData.pad([counts], [outputs])).model, linear


@pytest.mark.parametrize("seed", range(2))
def test_slalom_predicts_a_transformer_beyond_the_sampled_lengths(seed):
    torch.manual_seed(seed)
    weight = torch.linspace(-1.5, 1.5, N_WORDS)
    model = train_on_linear_data(weight, n_steps=120)
    counts, outputs = answers(model, draw_sequences(1000, 1, LONGEST))
    learnt = torch.corrcoef(torch.stack([counts @ weight.double(), outputs]))[0, 1]
    assert learnt > 0.8
    slalom, linear = fit_both(counts, outputs)
    for shortest in (2 * LONGEST, 5 * LONGEST):
        beyond = draw_sequences(500, shortest, shortest + LONGEST)
        counts, outputs = answers(model, beyond)
        by_slalom, by_linear = (
            slalom(counts[None])[0],
            counts @ linear[:-1] + linear[-1],
        )
        error = (by_slalom - outputs).square().mean()
        assert error < 0.8 * (by_linear - outputs).square().mean()
