from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy import stats

from captum_attnflow.study.table import Estimate, Interval


def test_standard_error_is_that_of_scipy():
    values = torch.rand(50, dtype=torch.float64)
    estimate = Estimate.of(values)
    assert estimate.mean == pytest.approx(values.numpy().mean())
    assert estimate.standard_error == pytest.approx(stats.sem(values.numpy()))
    assert estimate.n == 50


def test_one_example_has_no_standard_error():
    estimate = Estimate.of(torch.tensor([0.5]).double())
    assert estimate.mean == 0.5
    assert math.isnan(estimate.standard_error)


def test_interval_is_the_percentile_bootstrap_of_scipy():
    differences = torch.randn(80, dtype=torch.float64) ** 3
    [interval] = Interval.of(differences[:, None], seed=0)
    result = stats.bootstrap(
        (differences.numpy(),),
        np.mean,
        n_resamples=10_000,
        method="percentile",
        random_state=1,
    )
    spread = result.confidence_interval.high - result.confidence_interval.low
    # Both ends carry the noise of 10,000 resamples.
    assert interval.low == pytest.approx(
        result.confidence_interval.low, abs=0.05 * spread
    )
    assert interval.high == pytest.approx(
        result.confidence_interval.high, abs=0.05 * spread
    )


def test_interval_follows_the_seed_and_nothing_else():
    differences = torch.rand(20, 2, dtype=torch.float64)
    first = Interval.of(differences, seed=3)
    torch.manual_seed(5)
    assert Interval.of(differences, seed=3) == first
    assert Interval.of(differences, seed=4) != first


def test_an_interval_does_not_depend_on_those_beside_it():
    differences = torch.randn(30, 3, dtype=torch.float64)
    for column, together in enumerate(Interval.of(differences, seed=0)):
        [alone] = Interval.of(differences[:, [column]], seed=0)
        assert together.low == pytest.approx(alone.low)
        assert together.high == pytest.approx(alone.high)
        assert together.mean == pytest.approx(differences[:, column].mean().item())
