"""A batch in parts that memory holds."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from captum_attnflow._memory import is_out_of_memory
from captum_attnflow._warnings import warn_caller
from captum_attnflow.attr._arguments import ForwardArguments
from captum_attnflow.capture import AttentionRecord
from captum_attnflow.capture.watched_layer import LayerCalls


def capture_in_parts(
    capture: Callable[[ForwardArguments, int | None], Iterable[AttentionRecord]],
    arguments: ForwardArguments,
    internal_batch_size: int | None,
    rows_per_example: int,
    layer_calls: LayerCalls | None,
) -> AttentionRecord:
    """Capture a batch, in smaller parts where it does not fit into memory.

    Args:
        capture (Callable): Captures a part, given the rows of a forward pass.
        arguments (ForwardArguments): The batch.
        internal_batch_size (int, optional): Rows of a forward pass. If ``None``, all of
            them, then half as many for as long as memory is short, with a warning.
        rows_per_example (int): Rows that an example takes.
        layer_calls (LayerCalls, optional): Calls of a layer, without those of passes
            that failed.

    Returns:
        AttentionRecord: Of the whole batch.

    Raises:
        RuntimeError: If memory is short for the rows that were asked for, or for one.
    """
    rows, at_once = arguments.n_rows * rows_per_example, internal_batch_size
    while True:
        try:
            records = [
                record
                for part in arguments.split(at_once, rows_per_example)
                for record in capture(part, at_once)
            ]
            break
        except (MemoryError, RuntimeError) as error:
            given = internal_batch_size is not None
            if given or rows == 1 or not is_out_of_memory(error):
                raise
        # Behind the exception, which holds the tensors of the pass that failed.
        failed, rows = rows, (rows + 1) // 2
        if rows > rows_per_example:
            rows -= rows % rows_per_example
        at_once = rows
        if layer_calls is not None:
            layer_calls.forget()
        warn_caller(
            f"a forward and backward pass of {failed} rows did not fit into memory; "
            f"going on with {rows} at once. internal_batch_size={rows} saves the pass "
            "that failed"
        )
    return AttentionRecord.concatenate(records)
