from __future__ import annotations

from math import exp

import pytest
import torch
from reference.slalom import removal, slalom

from captum_attnflow.slalom import SlalomModel, score_types

TOKENS = [0, 1, 2, 0, 0, 3]
FUNCTION = ([1.5, -2.0, 0.3, 4.0], [0.4, 1.0, -0.9, -0.5])
COUNTS = torch.tensor([[3.0, 1.0, 1.0, 1.0]]).double()
SINKS = [None, (0.8, 1.2)]


def a_model(sink) -> SlalomModel:
    value, importance = torch.tensor(FUNCTION, dtype=torch.float64)[:, None]
    parts = [None, None] if sink is None else [torch.tensor([x]).double() for x in sink]
    return SlalomModel(value, importance, torch.ones(1, 4, dtype=torch.bool), *parts)


def scored(name, sink=None) -> list[float]:
    per_type = score_types(name, a_model(sink), COUNTS)[0]
    return per_type[TOKENS].tolist()


@pytest.mark.parametrize("sink", SINKS)
def test_prediction_is_the_weighted_mean(sink):
    predicted = a_model(sink)(COUNTS[:, None]).item()
    assert predicted == pytest.approx(slalom(TOKENS, FUNCTION, sink))


@pytest.mark.parametrize("sink", SINKS)
def test_removal_is_the_effect_of_leaving_one_occurrence_out(sink):
    expected = [removal(TOKENS, place, FUNCTION, sink) for place in range(6)]
    assert scored("removal", sink) == pytest.approx(expected)


def test_contributions_sum_to_the_prediction():
    assert sum(scored("contribution")) == pytest.approx(slalom(TOKENS, FUNCTION))


@pytest.mark.parametrize("sink", SINKS)
def test_contributions_are_linearized_scores_over_the_mass(sink):
    mass = sum(exp(FUNCTION[1][token]) for token in TOKENS)
    mass += exp(sink[1]) if sink else 0
    expected = [score / mass for score in scored("linearized", sink)]
    assert scored("contribution", sink) == pytest.approx(expected)


def test_linearized_is_value_times_weight():
    expected = [FUNCTION[0][token] * exp(FUNCTION[1][token]) for token in TOKENS]
    assert scored("linearized") == pytest.approx(expected)


def test_value_and_importance_are_the_parameters():
    for name, parameters in zip(("value", "importance"), FUNCTION, strict=True):
        expected = [parameters[token] for token in TOKENS]
        assert scored(name) == pytest.approx(expected)


def test_removal_of_the_only_token_is_zero():
    model = SlalomModel(
        *torch.tensor([[[2.0]], [[0.0]]]).double(), torch.tensor([[True]])
    )
    counts = torch.ones(1, 1, dtype=torch.float64)
    assert score_types("removal", model, counts).tolist() == [[0.0]]


@pytest.mark.parametrize("name", ["contribution", "removal"])
def test_a_constant_added_to_all_importances_changes_nothing(name):
    model = a_model(SINKS[1])
    shifted = SlalomModel(
        model.value,
        model.importance + 3,
        model.types,
        model.sink_value,
        model.sink_importance + 3,
    )
    torch.testing.assert_close(
        score_types(name, shifted, COUNTS), score_types(name, model, COUNTS)
    )
