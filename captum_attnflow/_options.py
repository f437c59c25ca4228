"""Options are named, with literal values; anything else is refused when given."""

from __future__ import annotations

from collections.abc import Collection


def check_batch_size(given: object) -> None:
    """Refuse what is no positive number of rows, nor None.

    Raises:
        ValueError: Saying what was given.
    """
    if given is not None and (not isinstance(given, int) or given < 1):
        raise ValueError(
            f"internal_batch_size={given!r} must be a positive integer or None"
        )


def check_choice(name: str, given: object, accepted: Collection[str]) -> None:
    """Refuse a value that is not among those accepted.

    Raises:
        ValueError: Naming the option, what was given and what is accepted.
    """
    if given not in list(accepted):
        choices = ", ".join(repr(choice) for choice in accepted)
        raise ValueError(f"{name}={given!r} is unknown; give one of {choices}")


def check_example(given: int, n_examples: int) -> None:
    """Refuse what is no index into a batch, counted from 0.

    Raises:
        ValueError: Saying what was given and how large the batch is.
    """
    if not 0 <= given < n_examples:
        raise ValueError(
            f"example={given} is not in a batch of {n_examples}; examples are counted "
            "from 0"
        )
