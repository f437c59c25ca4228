"""A batch in parts that memory holds."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TypeVar

from captum_attnflow._memory import is_out_of_memory
from captum_attnflow._warnings import warn_caller
from captum_attnflow.attr._arguments import ForwardArguments

Part = TypeVar("Part")


def run_in_parts(
    run: Callable[[ForwardArguments, int | None], Iterable[Part]],
    arguments: ForwardArguments,
    internal_batch_size: int | None,
    rows_per_example: int = 1,
    before_retry: Callable[[], None] = lambda: None,
) -> list[Part]:
    """Run a batch, in smaller parts where it does not fit into memory.

    Args:
        run (Callable): Runs a part, given the rows of a forward pass.
        arguments (ForwardArguments): The batch.
        internal_batch_size (int, optional): Rows of a forward pass. If ``None``, all of
            them, then half as many for as long as memory is short, with a warning.
        rows_per_example (int): Rows that an example takes.
        before_retry (Callable): Called after a pass that did not fit.

    Returns:
        list: What the parts gave, in order.

    Raises:
        RuntimeError: If memory is short for the rows that were asked for, or for one.
    """
    rows, at_once = arguments.n_rows * rows_per_example, internal_batch_size
    while True:
        try:
            return [
                result
                for part in arguments.split(at_once, rows_per_example)
                for result in run(part, at_once)
            ]
        except (MemoryError, RuntimeError) as error:
            given = internal_batch_size is not None
            if given or rows == 1 or not is_out_of_memory(error):
                raise
        # Behind the exception, which holds the tensors of the pass that failed.
        failed, rows = rows, (rows + 1) // 2
        if rows > rows_per_example:
            rows -= rows % rows_per_example
        at_once = rows
        before_retry()
        warn_caller(
            f"a forward and backward pass of {failed} rows did not fit into memory; "
            f"going on with {rows} at once. internal_batch_size={rows} saves the pass "
            "that failed"
        )
