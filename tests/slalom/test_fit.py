from __future__ import annotations

import pytest
import torch
from reference.slalom import slalom
from scipy.optimize import least_squares

from captum_attnflow.slalom import (
    QueryData,
    SlalomModel,
    count_types,
    draw_deletions,
    draw_short,
    fit_slalom,
)
from captum_attnflow.slalom.fit import Posterior, Precisions, Problem, State


def a_function(n_types: int, seed: int = 0) -> tuple[list[float], list[float]]:
    generator = torch.Generator().manual_seed(seed)
    value = 2 * torch.randn(n_types, generator=generator, dtype=torch.float64)
    importance = torch.randn(n_types, generator=generator, dtype=torch.float64)
    return value.tolist(), (importance - importance.mean()).tolist()


def asked(queries, function, types=None, sink=None, noise=0.0) -> QueryData:
    """Answers of a function to queries, as data of one text."""
    types = range(len(function[0])) if types is None else types
    answers = torch.tensor(
        [
            slalom([types[place] for place in query], function, sink)
            for query in queries
        ],
        dtype=torch.float64,
    )
    answers += noise * torch.randn(len(queries), dtype=torch.float64)
    counts = count_types(types, queries, len(function[0]))
    return QueryData.pad([counts], [answers])


def random_triples(n_types: int, n_triples: int, seed: int) -> list[tuple[int, ...]]:
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randint(n_types, (n_triples, 3), generator=generator)
    return [tuple(triple) for triple in drawn.tolist()]


def is_generic(data: QueryData, function) -> bool:
    """Whether no other function nearby gives the same answers."""
    problem = Problem.of(data, sink=False)
    state = State.at(problem, *torch.tensor(function, dtype=torch.float64)[:, None])
    rank = torch.linalg.matrix_rank(state.jacobian(problem)[0])
    return int(rank) == 2 * len(function[0]) - 1


def assert_recovered(data, function, atol=1e-5):
    fit = fit_slalom(data)
    for found, expected in zip(
        (fit.model.value[0], fit.model.importance[0]), function, strict=True
    ):
        torch.testing.assert_close(
            found, torch.tensor(expected, dtype=torch.float64), atol=atol, rtol=0
        )
    return fit


@pytest.mark.parametrize("n_types", [5, 8, 15, 30])
def test_three_random_triples_per_type_recover_the_function(n_types):
    function, n_recovered = a_function(n_types), 0
    for seed in range(8):
        # Some draws leave a type out, or do not link it: no fit can tell it then.
        data = asked(random_triples(n_types, 3 * n_types, seed), function)
        if is_generic(data, function):
            assert_recovered(data, function)
            n_recovered += 1
    assert n_recovered >= 4


@pytest.mark.parametrize("n_types", [1, 2, 3, 5, 12, 30])
@pytest.mark.parametrize("seed", range(4))
def test_twice_the_types_less_one_queries_recover_the_function(n_types, seed):
    function = a_function(n_types, seed)
    generator = torch.Generator().manual_seed(seed)
    queries = draw_short(range(n_types), 2 * n_types - 1, generator)
    assert len(queries) == 2 * n_types - 1
    assert_recovered(asked(queries, function), function)


@pytest.mark.parametrize("n_types", [2, 5, 12, 30])
@pytest.mark.parametrize("seed", range(4))
def test_three_balanced_triples_per_type_recover_the_function(n_types, seed):
    """The fewest without triples that link the types one by one."""
    function = a_function(n_types, seed)
    generator = torch.Generator().manual_seed(seed)
    queries = draw_short(range(n_types), 4 * n_types, generator)
    assert_recovered(asked(queries, function), function)


def test_deletions_of_a_text_with_duplicates_recover_the_function():
    types = [0, 1, 2, 0, 3, 1, 0, 4, 5, 2]
    function = a_function(6)
    queries = draw_deletions(types, 200, torch.Generator().manual_seed(0))
    assert_recovered(asked(queries, function, types), function)


def test_a_function_with_a_sink_is_recovered():
    function, sink = a_function(9), (0.7, 1.1)
    queries = draw_deletions(range(9), 300, torch.Generator().manual_seed(0))
    fit = fit_slalom(asked(queries, function, sink=sink), sink=True)
    found = [fit.model.sink_value, fit.model.sink_importance]
    torch.testing.assert_close(
        torch.cat(found), torch.tensor(sink).double(), atol=1e-5, rtol=0
    )
    torch.testing.assert_close(
        fit.model.value[0], torch.tensor(function[0]).double(), atol=1e-5, rtol=0
    )


@pytest.mark.parametrize("constant", [0.0, -3.25])
def test_equal_values_leave_the_importances_to_the_prior(constant):
    """So does a constant model, which is the same function."""
    function = ([constant] * 6, a_function(6)[1])
    queries = draw_short(range(6), 60, torch.Generator().manual_seed(0))
    fit = fit_slalom(asked(queries, function))
    assert (fit.model.value - constant).abs().max() < 1e-9
    assert fit.model.importance.abs().max() < 1e-6
    assert fit.identified.item() < 0.01
    assert fit.importance_standard_error.min() > 0.5


def test_noise_gives_honest_error_bars():
    """Errors over their standard errors have unit size, over many noisy fits."""
    function = a_function(8)
    queries = draw_short(range(8), 120, torch.Generator().manual_seed(0))
    ratios, noises = [], []
    for _ in range(30):
        fit = fit_slalom(asked(queries, function, noise=0.1))
        noises.append(fit.noise)
        for found, error, expected in (
            (fit.model.value, fit.value_standard_error, function[0]),
            (fit.model.importance, fit.importance_standard_error, function[1]),
        ):
            ratios.append((found[0] - torch.tensor(expected).double()) / error[0])
    assert 0.85 < torch.stack(ratios).square().mean().sqrt() < 1.15
    assert torch.cat(noises).mean().item() == pytest.approx(0.1, rel=0.05)


def test_the_fit_is_the_mode_that_a_generic_solver_finds():
    function = a_function(6)
    queries = draw_short(range(6), 60, torch.Generator().manual_seed(0))
    data = asked(queries, function, noise=0.3)
    fit = fit_slalom(data)
    problem = Problem.of(data, sink=False)
    scaled = (fit.model.value - problem.offset[:, None]) / problem.scale[:, None]
    mode = State.at(problem, scaled, fit.model.importance)
    precisions = Precisions.initial(problem, mode)
    for _ in range(100):
        precisions = Posterior(problem, precisions).improved(mode)
    # Fixed precisions give a plain least-squares problem for scipy.
    spreads = [precisions.noise, precisions.value, precisions.importance]
    noise, by_value, by_importance = (float(spread) ** 0.5 for spread in spreads)

    def residuals(parameters):
        value, importance = torch.tensor(parameters)[None].chunk(2, 1)
        state = State.at(problem, value, importance)
        centred = value - precisions.value_mean[:, None]
        parts = (noise * state.residual, by_value * centred, by_importance * importance)
        return torch.cat(parts, 1)[0].numpy()

    expected = least_squares(residuals, torch.zeros(12).numpy(), xtol=1e-12).x
    found = torch.cat([scaled, fit.model.importance], 1)[0]
    torch.testing.assert_close(found, torch.tensor(expected), atol=0.01, rtol=0)


def test_hessian_and_gradient_are_those_of_autograd():
    data = asked(random_triples(5, 40, 0), a_function(5), noise=0.1)
    problem = Problem.of(data, sink=True)
    value, importance = torch.randn(2, 1, 6, dtype=torch.float64)
    importance -= problem.mean_over_types(importance)
    precisions = Precisions(*torch.rand(4, 1, dtype=torch.float64))
    posterior = Posterior(problem, precisions)
    state = State.at(problem, value, importance)
    gradient, _ = posterior.system(state)

    def energy(value, importance):
        return posterior.energy(State.at(problem, value, importance)).sum()

    expected = torch.autograd.functional.jacobian(energy, (value, importance))
    torch.testing.assert_close(gradient, torch.cat(expected, 1))

    def prediction(value, importance):
        return State.at(problem, value, importance).residual[0]

    slopes = torch.autograd.functional.jacobian(prediction, (value, importance))
    expected_jacobian = torch.cat([slope[:, 0] for slope in slopes], 1)
    torch.testing.assert_close(state.jacobian(problem)[0], expected_jacobian)


@pytest.mark.parametrize("sink", [False, True])
def test_a_texts_fit_does_not_depend_on_its_batch(sink):
    texts = [
        asked(draw_short(range(n), 12 * n, torch.Generator()), a_function(n), noise=0.1)
        for n in (1, 4, 9)
    ]
    together = fit_slalom(
        QueryData.pad(
            [text.counts[0] for text in texts], [text.outputs[0] for text in texts]
        ),
        sink,
    )
    for row, text in enumerate(texts):
        alone = fit_slalom(text, sink)
        n_types = text.types.shape[1]
        for name in ("value", "importance"):
            mine = getattr(together.model, name)[row]
            # A sink beside two types is hardly identified: compare by standard error.
            error = getattr(alone, f"{name}_standard_error")[0]
            difference = (mine[:n_types] - getattr(alone.model, name)[0]).abs()
            assert (difference <= 1e-6 + 1e-4 * error).all()
            assert not mine[n_types:].any()


def test_weights_that_span_many_orders_do_not_overflow():
    model = SlalomModel(
        value=torch.tensor([[1.0, 2.0]]).double(),
        importance=torch.tensor([[-800.0, 800.0]]).double(),
        types=torch.tensor([[True, True]]),
    )
    predicted = model(torch.tensor([[[1, 1], [0, 1], [1, 0]]]).double())
    assert predicted[0, :2].tolist() == [2.0, 2.0]


@pytest.mark.parametrize("sink", [False, True])
def test_fewer_queries_than_parameters_are_fitted_without_an_error(sink):
    """Their prior is lost in rounding beside the noise's precision."""
    generator = torch.Generator().manual_seed(0)
    for _ in range(60):
        n_queries, n_types = torch.randint(1, 4, (2,), generator=generator).tolist()
        counts = torch.randint(3, (n_queries, n_types), generator=generator).double()
        counts = counts[counts.sum(1) > 0]
        if not len(counts):
            continue
        outputs = 1e4 * torch.randn(len(counts), generator=generator)
        data = QueryData.pad([counts], [outputs])
        fit = fit_slalom(data, sink)
        for part in (
            fit.model.value,
            fit.model.importance,
            fit.value_standard_error,
            fit.importance_standard_error,
            fit.noise,
        ):
            assert part.isfinite().all()
        same = (counts[:, None] == counts).all(-1).sum() == len(counts)
        if same and len(counts) < n_types:
            torch.testing.assert_close(
                fit.model(data.counts)[0, : len(counts)],
                outputs.double(),
                rtol=1e-3,
                atol=1.0,
            )


def test_a_query_without_a_token_needs_a_sink():
    data = QueryData.pad(
        [torch.tensor([[0.0, 0], [1, 0], [1, 1]]).double()], [torch.arange(3.0)]
    )
    with pytest.raises(ValueError, match=r"no token.*give sink=True"):
        fit_slalom(data)
    assert fit_slalom(data, sink=True).model.value.isfinite().all()
