"""Which part of a table a process explains, where many share it out."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping

from captum_attnflow._checks import check_type, described

_VARIABLES = (
    "RANK and WORLD_SIZE (torchrun), SLURM_ARRAY_TASK_ID and SLURM_ARRAY_TASK_COUNT, "
    "or SLURM_PROCID and SLURM_NTASKS"
)


def read_part(
    given: str | None, environment: Mapping[str, str] = os.environ
) -> tuple[int, int]:
    """Read which part of how many is meant.

    Of several launchers that speak at once, torchrun counts first, then a SLURM array,
    then the tasks of srun.

    Args:
        given (str, optional): ``"i/n"``, counted from 1; ``"auto"`` for what the
            launcher set; None for all of the table.
        environment (mapping): The environment's variables.

    Returns:
        tuple: ``i`` and ``n``.

    Raises:
        ValueError: If it is no part, or no launcher set any.

    Examples::

        >>> read_part("2/4")
        (2, 4)
        >>> read_part("auto", {"RANK": "0", "WORLD_SIZE": "8"})
        (1, 8)
    """
    if given is None:
        return 1, 1
    check_type("part", given, str, "i/n, such as 2/4, or auto")
    if given == "auto":
        return _of_launcher(environment)
    found = re.fullmatch(r"([0-9]{1,9})/([0-9]{1,9})", given)
    if found is None:
        raise ValueError(
            f"part={given!r} is no part; give i/n, such as 2/4 for the second of four, "
            "or auto"
        )
    part = int(found[1]), int(found[2])
    check_part(part)
    return part


def check_part(part: object) -> None:
    """Refuse what is no part of a number of parts.

    Raises:
        ValueError: Saying what was given and what is accepted.
    """
    are_two = isinstance(part, tuple) and len(part) == 2
    if not isinstance(part, tuple) or not are_two or not all(map(_is_integer, part)):
        raise ValueError(f"part={described(part)}; give two integers, such as (2, 4)")
    index, n_parts = part
    if not 1 <= index <= n_parts:
        raise ValueError(
            f"part {index}/{n_parts} is out of range; parts are counted from 1: give "
            f"one of 1/{max(n_parts, 1)} to {max(n_parts, 1)}/{max(n_parts, 1)}"
        )


def _is_integer(given: object) -> bool:
    return isinstance(given, int) and not isinstance(given, bool)


def _of_launcher(environment: Mapping[str, str]) -> tuple[int, int]:
    def number(name: str, default: int | None = None) -> int:
        value = environment.get(name, default)
        try:
            return int(value)  # type: ignore[arg-type]
        except (TypeError, ValueError):
            raise ValueError(
                f"part='auto': the variable {name} is {value!r} and no integer; give "
                "the part itself, such as 2/4"
            ) from None

    if "RANK" in environment and "WORLD_SIZE" in environment:
        part = number("RANK") + 1, number("WORLD_SIZE")
    elif "SLURM_ARRAY_TASK_ID" in environment:
        first, step = (
            number("SLURM_ARRAY_TASK_MIN", 0),
            number("SLURM_ARRAY_TASK_STEP", 1),
        )
        index = (number("SLURM_ARRAY_TASK_ID") - first) // max(step, 1)
        part = index + 1, number("SLURM_ARRAY_TASK_COUNT")
    elif "SLURM_PROCID" in environment and "SLURM_NTASKS" in environment:
        part = number("SLURM_PROCID") + 1, number("SLURM_NTASKS")
    else:
        raise ValueError(
            f"part='auto', but no launcher set {_VARIABLES}; give the part itself, "
            "such as 2/4"
        )
    check_part(part)
    return part
