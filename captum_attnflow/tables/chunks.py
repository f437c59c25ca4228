"""The rows of a table, cut into chunks: one chunk, one part file.

A chunk is the same whatever else is explained, before or beside it. So are the batches
within it, and with them the last digits of scores.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator, Set
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from captum_attnflow._files import named_in_errors
from captum_attnflow.tables.data import Row, TableData
from captum_attnflow.tables.settings import TableJob

_ROWS_AT_ONCE = 1024


@dataclass(frozen=True)
class Chunk:
    """Rows that are explained together and written to one file.

    Attributes:
        number (int): Which one, counted from 0.
        rows (tuple of Row): In the order of the output.
    """

    number: int
    rows: tuple[Row, ...]


@dataclass(frozen=True, eq=False)
class ChunkPlan:
    """Which rows are in which chunk.

    Attributes:
        n_rows (int): Rows in all chunks.
        size (int): Rows of every chunk but the last.
        order (array, optional): Row numbers, int64 of shape ``(n_rows,)``; None for
            the order of the data.
    """

    n_rows: int
    size: int
    order: np.ndarray[Any, Any] | None

    @staticmethod
    def of(job: TableJob, n_data_rows: int) -> ChunkPlan:
        """Draw the order, if one is asked for. It takes 16 bytes a row."""
        n_rows = min(job.limit or n_data_rows, n_data_rows)
        order = None
        if job.shuffle_seed is not None:
            # The one generator of NumPy whose numbers no release may change.
            order = np.random.RandomState(job.shuffle_seed).permutation(n_data_rows)
            order = order[:n_rows]
        return ChunkPlan(n_rows, job.rows_per_part, order)

    @property
    def n_chunks(self) -> int:
        """How many chunks there are."""
        return -(-self.n_rows // self.size)

    def numbers(self, chunk: int) -> list[int]:
        """The row numbers of a chunk, in order."""
        first, end = chunk * self.size, min((chunk + 1) * self.size, self.n_rows)
        if self.order is None:
            return list(range(first, end))
        found: list[int] = self.order[first:end].tolist()
        return found

    def read(self, job: TableJob, data: TableData, wanted: Set[int]) -> Iterator[Chunk]:
        """Read some of the chunks, in ascending order.

        Raises:
            ValueError: If the data have fewer rows than before.
        """
        if not wanted:
            return
        rows = (
            self._in_order(job, data, wanted)
            if self.order is None
            else self._shuffled(job, data, wanted)
        )
        for number in sorted(wanted):
            found = tuple(islice(rows, len(self.numbers(number))))
            if [row.number for row in found] != self.numbers(number):
                raise ValueError(
                    f"{data.name} has changed since its rows were counted; run again "
                    "when nothing writes to it"
                )
            yield Chunk(number, found)

    def _in_order(
        self, job: TableJob, data: TableData, wanted: Set[int]
    ) -> Iterator[Row]:
        for row in islice(data.rows(job), self.n_rows):
            if row.number // self.size in wanted:
                yield row

    def _shuffled(
        self, job: TableJob, data: TableData, wanted: Set[int]
    ) -> Iterator[Row]:
        """Copy the rows to a file of Arrow, and take them out of it in their order.

        The file is mapped to memory, of which the system keeps as much as it likes.
        """
        import pyarrow

        assert self.order is not None
        needed = np.zeros(data.n_rows, dtype=bool)
        chosen = np.concatenate([self.numbers(number) for number in sorted(wanted)])
        needed[chosen] = True
        place = np.cumsum(needed) - 1  # of a row among those that are copied
        schema = _row_schema(job, data)
        rows = (row for row in data.rows(job) if needed[row.number])
        path = _copy_rows(rows, schema, Path(job.output))
        try:
            with pyarrow.memory_map(os.fspath(path)) as mapped:
                if os.name == "posix":  # where a kill then leaves nothing behind
                    path.unlink()
                table = pyarrow.ipc.open_file(mapped).read_all()
                for start in range(0, len(chosen), _ROWS_AT_ONCE):
                    numbers = chosen[start : start + _ROWS_AT_ONCE]
                    taken = table.take(pyarrow.array(place[numbers]))
                    columns = [column.to_pylist() for column in taken.columns]
                    for number, name, text, pair, fault, *carried in zip(
                        *columns, strict=True
                    ):
                        yield Row(number, name, tuple(carried), text, pair, fault)
        finally:
            path.unlink(missing_ok=True)


def arrow_type(kind: Any) -> Any:
    """The type of Arrow that a carried column has."""
    import pyarrow

    named = {
        "string": pyarrow.string(),
        "json": pyarrow.string(),
        "int64": pyarrow.int64(),
        "double": pyarrow.float64(),
        "bool": pyarrow.bool_(),
    }
    return named[kind] if isinstance(kind, str) else kind


def _row_schema(job: TableJob, data: TableData) -> Any:
    try:
        import pyarrow
    except ImportError as error:
        raise ValueError(
            "shuffling needs pyarrow, which is not installed: pip install "
            '"captum-attnflow[tables]", or leave --shuffle-seed out'
        ) from error
    own = {"id": "string", "text": "string", "text_pair": "string", "fault": "string"}
    return pyarrow.schema(
        [
            ("", pyarrow.int64()),
            *((f" {name}", arrow_type(kind)) for name, kind in own.items()),
            *((name, arrow_type(data.kinds[name])) for name in job.columns),
        ]
    )


def _copy_rows(rows: Iterator[Row], schema: Any, folder: Path) -> Path:
    import pyarrow

    handle, name = tempfile.mkstemp(".tmp", ".shuffled-", folder)
    try:
        with (
            named_in_errors(name),
            os.fdopen(handle, "wb") as file,
            pyarrow.ipc.new_file(file, schema) as writer,
        ):
            while window := list(islice(rows, _ROWS_AT_ONCE)):
                values = [
                    (
                        row.number,
                        row.id,
                        row.text,
                        row.text_pair,
                        row.fault,
                        *row.carried,
                    )
                    for row in window
                ]
                writer.write_batch(
                    pyarrow.record_batch(
                        [
                            pyarrow.array(column, kind)
                            for column, kind in zip(
                                zip(*values, strict=True), schema.types, strict=True
                            )
                        ],
                        schema=schema,
                    )
                )
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
    return Path(name)
