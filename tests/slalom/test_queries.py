from __future__ import annotations

from itertools import combinations, product

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from captum_attnflow.slalom import (
    count_types,
    draw_deletions,
    draw_halves,
    draw_random_deletions,
    draw_short,
    draw_subsets,
)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


texts = st.lists(st.integers(0, 6), min_size=1, max_size=14).map(
    lambda drawn: [sorted(set(drawn)).index(kind) for kind in drawn]
)


@given(texts, st.integers(1, 120), st.integers(0, 9))
def test_no_sequence_of_types_is_asked_twice(types, n_more, seed):
    n_queries = 2 * len(set(types)) + n_more
    for draw in (draw_short, draw_deletions):
        queries = draw(types, n_queries, generator(seed))
        sequences = [tuple(types[place] for place in query) for query in queries]
        assert len(set(sequences)) == len(sequences) <= n_queries
        assert all(sequences)


@given(texts, st.integers(0, 9))
def test_short_queries_start_with_each_type_alone(types, seed):
    queries = draw_short(types, 400, generator(seed))
    n_types = len(set(types))
    alone = [types[query[0]] for query in queries[:n_types]]
    assert alone == list(range(n_types))
    assert {len(query) for query in queries[n_types:]} <= {3}


def test_a_large_budget_asks_all_there_is():
    types = [0, 1, 2]
    asked = {
        tuple(types[place] for place in query)
        for query in draw_short(types, 999, generator())
    }
    assert asked == {(0,), (1,), (2,), *product(range(3), repeat=3)}
    deletions = draw_deletions(types, 999, generator())
    everything = [c for n in (1, 2, 3) for c in combinations(range(3), n)]
    assert sorted(deletions) == sorted(everything)
    assert sorted(draw_subsets(3, 999, generator())) == sorted(everything)


@pytest.mark.parametrize("seed", range(5))
def test_each_linking_triple_holds_one_type_more(seed):
    queries = draw_short(range(20), 39, generator(seed))
    seen = set(queries[20])
    for triple in queries[21:]:
        assert len(set(triple) - seen) == 1
        seen |= set(triple)
    assert seen == set(range(20))


@pytest.mark.parametrize("n_types", [1, 2, 7, 12])
def test_each_pair_of_types_stands_at_each_two_places_once(n_types):
    """In every square of triples in a row."""
    n_queries = n_types + n_types**3
    triples = draw_short(range(n_types), n_queries, generator())[n_types:]
    assert len(triples) == n_types**3
    everything = sorted(product(range(n_types), repeat=2))
    for start in range(0, len(triples), n_types**2):
        square = triples[start : start + n_types**2]
        for two in combinations(range(3), 2):
            assert sorted(tuple(t[i] for i in two) for t in square) == everything


@pytest.mark.parametrize("n_types", [7, 13])
def test_a_part_of_a_square_holds_each_type_as_often(n_types):
    queries = draw_short(range(n_types), 5 * n_types, generator())
    for start in range(n_types, 5 * n_types, n_types):
        counts = count_types(range(n_types), queries[start : start + n_types])
        assert (counts.sum(0) == 3).all()


@given(st.integers(1, 30), st.integers(1, 9), st.integers(0, 9))
def test_halves_are_distinct_and_longer_than_triples(n_positions, n_queries, seed):
    halves = draw_halves(n_positions, n_queries, generator(seed))
    assert len(set(halves)) == len(halves) <= n_queries
    for half in halves:
        assert 3 < len(half) == n_positions // 2
        assert list(half) == sorted(set(half))
        assert set(half) <= set(range(n_positions))


def test_deletions_start_with_the_text_each_deletion_and_each_token_alone():
    types = [0, 1, 0, 2]
    alone = [(0,), (1,), (3,)]
    queries = draw_deletions(types, 8, generator())
    assert queries[0] == (0, 1, 2, 3)
    assert set(queries[1:5]) == set(combinations(range(4), 3))
    assert queries[5:] == alone


def test_random_deletions_delete_up_to_half():
    types = list(range(16))
    queries = draw_random_deletions(types, 500, generator())
    deleted = torch.tensor([16 - len(query) for query in queries])
    assert deleted.unique().tolist() == list(range(1, 9))
    assert all(list(query) == sorted(query) for query in queries)


def test_the_same_seed_gives_the_same_queries():
    for draw in (draw_short, draw_deletions):
        first = draw(range(9), 50, generator(3))
        assert first == draw(range(9), 50, generator(3))
        assert first != draw(range(9), 50, generator(4))


def test_counts_are_those_of_a_loop():
    types, queries = [0, 1, 0, 2], [(0,), (0, 2, 3), (1, 1, 1)]
    assert count_types(types, queries).tolist() == [[1, 0, 0], [2, 0, 1], [0, 3, 0]]
