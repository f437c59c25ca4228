"""Which sequences of a text's tokens are put to the model.

A text is given as the type of each of its positions. A query is the tuple of positions
whose tokens it holds, in their order; a position may stand in it repeatedly.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import chain, combinations, islice
from math import comb
from typing import Literal

import torch
from torch import Tensor

from captum_attnflow._options import check_integer, check_type
from captum_attnflow.texts import Query

Strategy = Literal["eff", "fidel"]

# As Leemann et al. draw them in SLALOM-eff.
SHORT_LENGTH = 3
# A few random triples per type link all of them; fewer may not.
_LINKED_BELOW = 4
# SLALOM-fidel deletes five tokens at most. Deleting up to half of the text instead
# halves the error at ten deletions and leaves that at one and five as it is.
LEAST_MOST_DELETIONS = 5


def draw_short(
    types: Sequence[int], n_queries: int, generator: torch.Generator
) -> list[Query]:
    """Draw each type alone, then distinct triples of types, in random Latin squares.

    Of ``V**2`` triples in a row each pair of types stands at each two places once.
    Uniform over all triples as SLALOM-eff draws them, they leave less to chance: what
    a SLALOM function does not fit is mostly of pairs, which its parameters then see
    in equal parts.

    Of less than ``4 V`` queries, the first ``V - 1`` triples each link one more type
    to those before. So ``2 V - 1`` queries identify a SLALOM function: the single gives
    the type's value, the triple its importance.

    Args:
        types (sequence of int): Type of each position, from 0 to ``V - 1``.
        n_queries (int): Most queries, at least ``V``.
        generator (torch.Generator): Source of randomness.

    Returns:
        list[Query]: ``n_queries`` queries, or all ``V + V**3`` if there are fewer.

    Examples::

        >>> draw_short([0, 1, 0], 3, torch.Generator().manual_seed(0))[:2]
        [(0,), (1,)]
    """
    _check_draw(types, n_queries, generator)
    first = [types.index(kind) for kind in range(max(types) + 1)]
    singles = [(position,) for position in first]
    is_few = n_queries < _LINKED_BELOW * len(first)
    linking = _linking_triples(len(first), generator) if is_few else ()
    drawn = chain(linking, _balanced_triples(len(first), generator))
    distinct = dict.fromkeys(islice(drawn, n_queries))
    triples = [tuple(first[kind] for kind in triple) for triple in distinct]
    return (singles + triples)[:n_queries]


def draw_halves(
    n_positions: int, n_queries: int, generator: torch.Generator
) -> list[Query]:
    """Draw distinct random halves of the text, each in ascending order.

    They tell how tokens weigh in company. A text of less than eight tokens has none:
    its halves are no longer than triples.

    Args:
        n_positions (int): Positions of the text.
        n_queries (int): Most queries.
        generator (torch.Generator): Source of randomness.

    Examples::

        >>> [half] = draw_halves(8, 1, torch.Generator().manual_seed(0))
        >>> len(half)
        4
    """
    check_integer("n_positions", n_positions, 1)
    _check_draw((0,), n_queries, generator, least=0)
    n_kept = n_positions // 2
    if n_kept <= SHORT_LENGTH:
        return []
    orders = (
        torch.randperm(n_positions, generator=generator) for _ in range(n_queries)
    )
    halves = (tuple(sorted(order[:n_kept].tolist())) for order in orders)
    return list(dict.fromkeys(halves))


def draw_subsets(
    n_positions: int, n_queries: int, generator: torch.Generator
) -> list[Query]:
    """Draw each position alone, then distinct random sets of at most three.

    For models that see what is absent as a baseline: there a token stands once, at its
    place.

    Args:
        n_positions (int): Positions of the text.
        n_queries (int): Most queries, at least ``n_positions``.
        generator (torch.Generator): Source of randomness.

    Returns:
        list[Query]: Each in ascending order; ``n_queries``, or all that there are.

    Examples::

        >>> sorted(draw_subsets(2, 9, torch.Generator().manual_seed(0)))
        [(0,), (0, 1), (1,)]
    """
    check_integer("n_positions", n_positions, 1)
    check_integer("n_queries", n_queries, 1)
    # A set of three stands for six of its sequences, one of two for six others.
    drawn = draw_short(range(n_positions), 8 * n_queries, generator)
    subsets = dict.fromkeys(tuple(sorted(set(query))) for query in drawn)
    return list(subsets)[:n_queries]


def draw_deletions(
    types: Sequence[int], n_queries: int, generator: torch.Generator
) -> list[Query]:
    """Draw the full text, all single deletions, each type alone, random deletions.

    The types alone are the text with all others deleted: they give the values, which
    deletions from a long text hardly tell. The number of random deletions is uniform
    from 1 to half of the text, at least 5 (as in SLALOM-fidel). No sequence of types is
    drawn twice, and no text is deleted entirely.

    Args:
        types (sequence of int): Type of each position.
        n_queries (int): Most queries.
        generator (torch.Generator): Source of randomness.

    Returns:
        list[Query]: ``n_queries`` queries, or all that there are.

    Examples::

        >>> draw_deletions([0, 1, 0], 9, torch.Generator().manual_seed(0))[0]
        (0, 1, 2)
    """
    _check_draw(types, n_queries, generator)
    full = tuple(range(len(types)))
    one_deleted = combinations(full, len(types) - 1) if len(types) > 1 else ()
    alone = ((types.index(kind),) for kind in range(max(types) + 1))
    return _distinct(
        types,
        n_queries,
        chain(
            [full], one_deleted, alone, _random_deletions(types, n_queries, generator)
        ),
    )


def draw_random_deletions(
    types: Sequence[int], n_queries: int, generator: torch.Generator
) -> list[Query]:
    """Draw the random ones of :func:`draw_deletions` only; same arguments."""
    _check_draw(types, n_queries, generator)
    drawn = _random_deletions(types, n_queries, generator)
    return _distinct(types, n_queries, drawn)


def count_types(
    types: Sequence[int], queries: Sequence[Query], n_types: int | None = None
) -> Tensor:
    """Count the types in each query.

    Returns:
        Tensor: Shape ``(Q, V)``, float64.
    """
    _check_types(types)
    _check_queries(queries, len(types))
    n_types = max(types) + 1 if n_types is None else n_types
    rows = torch.tensor([row for row, query in enumerate(queries) for _ in query])
    columns = torch.tensor([types[position] for query in queries for position in query])
    counts = torch.zeros(len(queries), n_types, dtype=torch.float64)
    ones = torch.ones(len(rows), dtype=torch.float64)
    return counts.index_put_((rows.long(), columns.long()), ones, accumulate=True)


def _check_types(types: Sequence[int]) -> None:
    accepted = "the type of each position, integers from 0 that leave none out"
    check_type("types", types, (list, tuple, range), accepted)
    numbers = [kind for kind in types if isinstance(kind, int)]
    if not types or numbers != list(types) or set(types) != set(range(max(types) + 1)):
        raise ValueError(f"types={types!r}; give {accepted}, such as [0, 1, 0]")


def _check_draw(
    types: Sequence[int], n_queries: int, generator: torch.Generator, least: int = 1
) -> None:
    _check_types(types)
    check_integer("n_queries", n_queries, least)
    check_type("generator", generator, torch.Generator, "a torch.Generator")


def _check_queries(queries: Sequence[Query], n_positions: int) -> None:
    check_type("queries", queries, (list, tuple), "a list of tuples of positions")
    for query in queries:
        check_type("a query", query, (list, tuple), "a tuple of positions")
        for position in query:
            check_integer("a position of a query", position, 0)
            if position >= n_positions:
                raise ValueError(
                    f"a query has position {position} of a text of {n_positions}; "
                    "positions count from 0"
                )


def _distinct(
    types: Sequence[int], n_queries: int, queries: Iterable[Query]
) -> list[Query]:
    """Take queries until there are enough, of equal sequences of types the first."""
    sequences: dict[Query, Query] = {}
    for query in queries:
        if len(sequences) >= n_queries:
            break
        sequences.setdefault(tuple(types[position] for position in query), query)
    return list(sequences.values())


def _random_deletions(
    types: Sequence[int], n_queries: int, generator: torch.Generator
) -> Iterator[Query]:
    positions = range(len(types))
    for deleted in _deleted_positions(len(types), n_queries, generator):
        yield tuple(position for position in positions if position not in deleted)


def _linking_triples(n_types: int, generator: torch.Generator) -> Iterator[Query]:
    """Yield triples of one new type and two random ones of those before."""
    order = torch.randperm(n_types, generator=generator).tolist()
    for n_before in range(1, n_types):
        before = torch.randint(n_before, (SHORT_LENGTH - 1,), generator=generator)
        triple = [order[n_before], *(order[index] for index in before.tolist())]
        shuffled = torch.randperm(SHORT_LENGTH, generator=generator).tolist()
        yield tuple(triple[place] for place in shuffled)


def _balanced_triples(n_types: int, generator: torch.Generator) -> Iterator[Query]:
    """Yield all triples of types, each once, one Latin square after the other.

    With types renamed at random at each place, square ``k`` is
    ``(a, a + d, 2 a + d + k)`` modulo ``V``. For one ``d``, the first two places hold
    every type once, and the third does if ``V`` is odd.
    """

    def shuffled() -> list[int]:
        order: list[int] = torch.randperm(n_types, generator=generator).tolist()
        return order

    one, two, three = shuffled(), shuffled(), shuffled()
    for k in shuffled():
        for d in shuffled():
            for a in range(n_types):
                b, c = (a + d) % n_types, (2 * a + d + k) % n_types
                yield one[a], two[b], three[c]


def _deleted_positions(
    n_positions: int, n_queries: int, generator: torch.Generator
) -> Iterator[frozenset[int]]:
    """Yield sets of positions to delete: enough at random, or all in random order."""
    most = min(max(LEAST_MOST_DELETIONS, n_positions // 2), n_positions - 1)
    if most < 1:
        return
    if sum(comb(n_positions, k) for k in range(1, most + 1)) <= 2 * n_queries:
        subsets = [
            frozenset(subset)
            for k in range(1, most + 1)
            for subset in combinations(range(n_positions), k)
        ]
        order = torch.randperm(len(subsets), generator=generator).tolist()
        yield from (subsets[index] for index in order)
        return
    # Sequences of types may coincide; a text of one type has only five deletions.
    for _ in range(20 * n_queries):
        n_deleted = int(torch.randint(1, most + 1, (), generator=generator))
        order = torch.randperm(n_positions, generator=generator)[:n_deleted].tolist()
        yield frozenset(order)
