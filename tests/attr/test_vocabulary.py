"""Ids that the embedding has no row for are named, by every method."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import captum_attnflow
from captum_attnflow import SLALOM, AttnLRP, GeneralizedAttentionFlow, RelevanceFlow

LAYERS = [name for name in captum_attnflow.__all__ if name.startswith("Layer")]
LAYERS.remove("LayeredNetwork")
PLAIN = [name.removeprefix("Layer") for name in LAYERS]


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.words, self.types = nn.Embedding(60, 8), nn.Embedding(2, 8)
        self.places, self.head = nn.Embedding(7, 8), nn.Linear(8, 2)

    def forward(self, ids: Tensor, types: Tensor | None = None) -> Tensor:
        hidden = self.words(ids) + self.places(torch.arange(ids.shape[1]))
        if types is not None:
            hidden = hidden + self.types(types)
        weights = (hidden @ hidden.mT).softmax(-1)
        return self.head((hidden + weights @ hidden)[:, 0])


@pytest.mark.parametrize("wrong", [[60], [-100], [61, 75]])
@pytest.mark.parametrize("name", PLAIN)
def test_ids_beyond_the_vocabulary_are_named(name, wrong):
    ids = torch.randint(0, 60, (2, 6))
    ids[1, 2 : 2 + len(wrong)] = torch.tensor(wrong)
    which = ", ".join(map(str, wrong))
    words = rf"the ids {which} were given, but .* 60 rows; give ids from 0 to 59"
    with pytest.raises(ValueError, match=words):
        getattr(captum_attnflow, name)(Model()).attribute(ids, target=1)


@pytest.mark.parametrize("name", LAYERS)
def test_layer_forms_name_them(name):
    model, ids = Model(), torch.full((1, 6), 70)
    method = getattr(captum_attnflow, name)(model, model.words)
    with pytest.raises(ValueError, match=r"the ids 70 were given, .* 60 rows"):
        method.attribute(ids, target=1)


@pytest.mark.parametrize("method", [GeneralizedAttentionFlow, AttnLRP, SLALOM])
def test_further_arguments_are_named(method):
    ids, types = torch.randint(0, 60, (2, 6)), torch.full((2, 6), 2)
    words = "the ids 2 were given, .* 2 rows; give ids from 0 to 1"
    with pytest.raises(ValueError, match=words):
        method(Model()).attribute(ids, target=1, additional_forward_args=types)


@pytest.mark.parametrize("method", [GeneralizedAttentionFlow, RelevanceFlow, AttnLRP])
def test_other_errors_of_the_model_pass_on_unchanged(method):
    """Of more tokens than positions none is a wrong id."""
    with pytest.raises(IndexError, match=r"^index out of range in self$"):
        method(Model()).attribute(torch.randint(7, 60, (2, 9)), target=1)

    def fails(ids: Tensor) -> Tensor:
        return Model()(ids)[[0, 5]]

    with pytest.raises(IndexError, match="out of bounds"):
        method(fails).attribute(torch.randint(0, 60, (2, 6)), target=1)


def test_the_model_runs_once():
    model, runs = Model(), []
    model.register_forward_pre_hook(lambda *_: runs.append(1))
    with pytest.raises(ValueError, match="the ids 60 were"):
        GeneralizedAttentionFlow(model).attribute(torch.full((1, 6), 60), target=1)
    assert len(runs) == 1
