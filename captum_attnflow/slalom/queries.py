"""The queries of a text: which sequences of its tokens the model is run on.

A text is given as the type of each of its positions. A query is a tuple of positions:
the model sees the tokens at these positions, in this order. A position may occur
repeatedly.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, combinations, islice
from math import comb
from typing import Literal

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from captum_attnflow._checks import check_dense, check_integer, check_type
from captum_attnflow.texts import Query

Strategy = Literal["eff", "fidel"]
"""Which queries are drawn: the paper's efficient ones, or those of highest fidelity."""

# Tokens of a short query in the paper's SLALOM-eff.
SHORT_LENGTH = 3

# With this many queries per type or more, random triples link all types; with fewer
# they may not.
_LINKED_BELOW = 4

# More than any text can be asked: the lists of queries would not fit into memory.
MOST_QUERIES = 10**7

# The paper's SLALOM-fidel deletes at most five tokens. Deleting up to half of the text
# instead halves the error at ten deletions, and does not change it at one and five.
LEAST_MOST_DELETIONS = 5


@dataclass(frozen=True, eq=False)
class QueryData:
    """Queries and outputs of a batch, padded to the most queries and types of a text.

    Attributes:
        counts (Tensor): Shape ``(B, Q, V)``, float64, how often each type occurs.
        outputs (Tensor): Shape ``(B, Q)``, float64, the model's outputs.
        weights (Tensor): Shape ``(B, Q)``, float64, weight of each squared error; 0
            where there is no query.
        types (Tensor): Shape ``(B, V)``, bool, ``False`` where there is no type.
    """

    counts: Tensor
    outputs: Tensor
    weights: Tensor
    types: Tensor

    @staticmethod
    def pad(
        counts: Sequence[Tensor],
        outputs: Sequence[Tensor],
        weights: Sequence[Tensor] | None = None,
    ) -> QueryData:
        """Pad the queries and outputs of each text and stack them.

        Args:
            counts (sequence of Tensor): Per text, shape ``(Q_b, V_b)``.
            outputs (sequence of Tensor): Per text, shape ``(Q_b,)``.
            weights (sequence of Tensor, optional): Per text, shape ``(Q_b,)``; all 1
                by default.

        Raises:
            ValueError: If shapes or dtypes do not fit.
        """
        for name, texts in (("counts", counts), ("outputs", outputs)):
            check_type(name, texts, (list, tuple), "a list of one tensor per text")
            if not texts:
                raise ValueError(f"{name} is empty; give one tensor per text")
            for text in texts:
                check_dense(name, text, "(Q, V) counts, (Q,) outputs, of each text")
        if weights is not None:
            check_type("weights", weights, (list, tuple), "a list as of the outputs")
            for text in weights:
                check_dense("weights", text, "(Q,) of each text")
        shapes = [[tuple(text.shape) for text in texts] for texts in (counts, outputs)]
        fit = [len(text) == 2 and text[1] > 0 for text in shapes[0]]
        if not all(fit) or [text[:1] for text in shapes[0]] != shapes[1]:
            raise ValueError(
                f"counts have shapes {shapes[0]} and outputs {shapes[1]}; give counts "
                "(Q, V) and outputs (Q,) per text, of at least one type"
            )
        if weights is not None and [tuple(w.shape) for w in weights] != shapes[1]:
            raise ValueError(
                f"weights have shapes {[tuple(w.shape) for w in weights]}, outputs "
                f"{shapes[1]}; give one weight per output"
            )
        if weights is None:
            weights = [torch.ones(len(text), dtype=torch.float64) for text in counts]
        n_types = max(text.shape[1] for text in counts)
        return QueryData(
            counts=pad_sequence(
                [
                    torch.nn.functional.pad(text, (0, n_types - text.shape[1]))
                    for text in counts
                ],
                batch_first=True,
            ),
            outputs=pad_sequence([text.double() for text in outputs], batch_first=True),
            weights=pad_sequence(list(weights), batch_first=True),
            types=pad_sequence(
                [torch.ones(text.shape[1], dtype=torch.bool) for text in counts],
                batch_first=True,
            ),
        )


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


def draw_short(
    types: Sequence[int], n_queries: int, generator: torch.Generator
) -> list[Query]:
    """Draw each type alone, then distinct triples of types, in random Latin squares.

    Among ``V**2`` successive triples each pair of types occurs once at each two places.
    Like the triples of the paper's SLALOM-eff they are uniform over all triples, but
    with less variance: what a SLALOM function cannot fit are mostly interactions of
    pairs, and these are now sampled equally often.

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

    They show the tokens' weights in longer texts. A text of less than eight tokens has
    no halves: they would not be longer than triples.

    Args:
        n_positions (int): Positions of the text.
        n_queries (int): Most queries.
        generator (torch.Generator): Source of randomness.

    Examples::

        >>> [half] = draw_halves(8, 1, torch.Generator().manual_seed(0))
        >>> len(half)
        4
    """
    check_integer("n_positions", n_positions, 1, MOST_QUERIES)
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

    For inputs that hold a baseline where a token is absent: there each token occurs
    once, at its own position.

    Args:
        n_positions (int): Positions of the text.
        n_queries (int): Most queries, at least ``n_positions``.
        generator (torch.Generator): Source of randomness.

    Returns:
        list[Query]: Each in ascending order; ``n_queries``, or all if there are fewer.

    Examples::

        >>> sorted(draw_subsets(2, 9, torch.Generator().manual_seed(0)))
        [(0,), (0, 1), (1,)]
    """
    check_integer("n_positions", n_positions, 1, MOST_QUERIES)
    check_integer("n_queries", n_queries, 1, MOST_QUERIES)
    # Six sequences of three types give the same set, and so do six of two types.
    drawn = draw_short(range(n_positions), 8 * n_queries, generator)
    subsets = dict.fromkeys(tuple(sorted(set(query))) for query in drawn)
    return list(subsets)[:n_queries]


def draw_deletions(
    types: Sequence[int], n_queries: int, generator: torch.Generator
) -> list[Query]:
    """Draw the full text, all single deletions, each type alone, random deletions.

    A type alone is the text with all others deleted. It determines the type's value,
    which deletions from a long text hardly do. The number of random deletions is
    uniform from 1 to half of the text, at least 5 (as in SLALOM-fidel). No sequence of
    types is drawn twice, and no text is deleted entirely.

    Args:
        types (sequence of int): Type of each position.
        n_queries (int): Most queries.
        generator (torch.Generator): Source of randomness.

    Returns:
        list[Query]: ``n_queries`` queries, or all possible ones if there are fewer.

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
    """Draw only the random deletions of :func:`draw_deletions`; same arguments."""
    _check_draw(types, n_queries, generator)
    drawn = _random_deletions(types, n_queries, generator)
    return _distinct(types, n_queries, drawn)


def _check_types(types: Sequence[int]) -> None:
    accepted = "the type of each position, integers from 0 without gaps"
    check_type("types", types, (list, tuple, range), accepted)
    numbers = [kind for kind in types if isinstance(kind, int)]
    if not types or numbers != list(types) or set(types) != set(range(max(types) + 1)):
        raise ValueError(f"types={types!r}; give {accepted}, such as [0, 1, 0]")


def _check_draw(
    types: Sequence[int], n_queries: int, generator: torch.Generator, least: int = 1
) -> None:
    _check_types(types)
    check_integer("n_queries", n_queries, least, MOST_QUERIES)
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
    """Take queries until there are enough; skip repeated sequences of types."""
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

    Square ``k`` is ``(a, a + d, 2 a + d + k)`` modulo ``V``, with the types permuted at
    random at each place. For each ``d``, the first two places hold every type once, and
    the third does if ``V`` is odd.
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
    """Yield random sets of positions to delete, or all sets if these are few."""
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
    # More than needed, as different deletions may leave the same sequence of types.
    for _ in range(20 * n_queries):
        n_deleted = int(torch.randint(1, most + 1, (), generator=generator))
        order = torch.randperm(n_positions, generator=generator)[:n_deleted].tolist()
        yield frozenset(order)
