"""``captum-attnflow explain --data`` and ``summarize``: tables of explanations.

What loads torch is imported when a command runs, not for its help text.
"""

from __future__ import annotations

import sys
from dataclasses import fields
from pathlib import Path
from typing import Annotated, Any, TypeAlias

import typer

from captum_attnflow._checks import counted
from captum_attnflow.cli._streams import (
    errors_as_sentences,
    options_named,
    printing,
    saying,
)
from captum_attnflow.runs.data import INPUT_FORMATS
from captum_attnflow.runs.sharing import ENGINES
from captum_attnflow.tables import TableJob, read_part
from captum_attnflow.tables.settings import OUTPUT_FORMATS

_PANEL = "Tables (--data)"
_MOST_REASONS = 5


def _option(text: str) -> Any:
    return typer.Option(help=text, rich_help_panel=_PANEL, show_default=False)


Data: TypeAlias = Annotated[
    str | None,
    _option(
        "Explain a table: a .csv, .tsv, .jsonl or .parquet file, a hub data set, or - "
        "for standard input. --output is then a folder; a run that stopped there is "
        "continued."
    ),
]
TextColumn: TypeAlias = Annotated[
    str | None, _option("Column of the texts; text by default.")
]
PairColumn: TypeAlias = Annotated[
    str | None, _option("Column of the second sentences of pairs.")
]
IdColumn: TypeAlias = Annotated[str | None, _option("Column that names the rows.")]
Columns: TypeAlias = Annotated[
    str | None, _option("Columns to carry along, separated by commas.")
]
Format: TypeAlias = Annotated[
    str | None, _option(f"One of: {', '.join(OUTPUT_FORMATS)}; parquet by default.")
]
InputFormat: TypeAlias = Annotated[
    str | None,
    _option(
        f"One of: {', '.join(INPUT_FORMATS)}; by the file's ending or standard input's "
        "first character by default."
    ),
]
Part: TypeAlias = Annotated[
    str | None,
    _option("i/n, to explain a part only; auto asks torchrun's or SLURM's variables."),
]
Limit: TypeAlias = Annotated[
    int | None,
    _option("Only N rows: the first, or by --shuffle-seed a random sample."),
]
ShuffleSeed: TypeAlias = Annotated[int | None, _option("Explain in a random order.")]
Split: TypeAlias = Annotated[
    str | None, _option(f"Split of a hub data set; {TableJob.split} by default.")
]
Subset: TypeAlias = Annotated[str | None, _option("Subset of a hub data set.")]
RowsPerPart: TypeAlias = Annotated[
    int | None, _option(f"Rows in a part file; {TableJob.rows_per_part} by default.")
]
BatchSize: TypeAlias = Annotated[
    int | None,
    _option(f"Most texts attributed together; {TableJob.batch_size} by default."),
]
Engine: TypeAlias = Annotated[
    str | None, _option(f"One of: {', '.join(ENGINES)}; local by default.")
]
Workers: TypeAlias = Annotated[
    int | None, _option("Of ray: processes of one thread that each hold the model.")
]
GpusPerWorker: TypeAlias = Annotated[float | None, _option("Of ray: GPUs of each.")]


def explain_data(
    data: str,
    output: Path | None,
    unused: dict[str, object],
    columns: str | None,
    part: str | None,
    **settings: Any,
) -> None:
    """Explain a table, and say on standard error what became of it.

    Args:
        data (str): The table.
        output (Path, optional): The folder, which has to be given.
        unused (dict): What a table does not take, by the option's name.
        columns (str, optional): Names separated by commas.
        part (str, optional): As :func:`captum_attnflow.tables.read_part` takes it.
        **settings: Other fields of :class:`captum_attnflow.tables.TableJob`, None where
            they are not given.
    """
    for name, given in unused.items():
        if given:
            raise ValueError(
                f"{name} does not go with --data, whose results are files in the "
                "folder --output; leave one of them out"
            )
    if output is None:
        raise ValueError("--data needs --output, a folder for the part files")
    if output.exists() and not output.is_dir():
        raise NotADirectoryError(
            f"--output {output} is a file; for --data give a folder"
        )
    names = [field.name for field in fields(TableJob)]
    with options_named([*names, *settings.get("options", {})]):
        job = TableJob(
            data=data,
            output=output,
            columns=tuple(columns.split(",")) if columns else (),
            part=read_part(part),
            **{name: value for name, value in settings.items() if value is not None},
        )
        job.check()
        from transformers.utils import logging as transformers_logging

        from captum_attnflow.tables import explain_table

        transformers_logging.disable_progress_bar()
        outcome = explain_table(job, show_progress=True)
    for warning in outcome.warnings:
        print(f"warning: {warning}", file=sys.stderr)
    kept = f", {outcome.n_kept} of them from before" if outcome.n_kept else ""
    print(
        f"{counted(outcome.n_rows, 'row')} in {counted(outcome.n_files, 'part file')}"
        f"{kept}: {output}",
        file=sys.stderr,
    )
    if outcome.n_failed:
        print(
            f"{counted(outcome.n_failed, 'row')} without an explanation, by reason:",
            file=sys.stderr,
        )
        common = outcome.reasons.most_common(_MOST_REASONS)
        for reason, count in common:
            print(f"  {count:,}: {reason}", file=sys.stderr)
        others = outcome.n_failed - sum(count for _, count in common)
        if others:
            print(f"  {others:,}: other reasons", file=sys.stderr)


def refuse_without_data(settings: dict[str, object]) -> None:
    """Refuse options of a table where none is given.

    Raises:
        ValueError: Naming the option.
    """
    for name, given in settings.items():
        if given is not None:
            option = f"--{name.replace('_', '-')}"
            raise ValueError(f"{option} is of tables; give one by --data, or leave it")


def refuse_table_as_lines(file: Path | None) -> None:
    """Refuse a table where a file of one text per line is meant.

    Raises:
        ValueError: Saying what to give.
    """
    ending = "" if file is None else file.suffix[1:].lower()
    if ending in INPUT_FORMATS:
        raise ValueError(
            f"--file {file} would be read as one text per line, and it is a table; "
            f"give --data {file} --text-column NAME --output FOLDER"
        )


def summarize(
    folders: Annotated[
        list[Path],
        typer.Argument(
            help="Folders of explain --data; several of the same data are compared."
        ),
    ],
    output: Annotated[
        Path | None,
        typer.Option(
            help="Folder of the page, the table and the pictures; by default the "
            "folder summary in the first folder.",
            show_default=False,
        ),
    ] = None,
    label_column: Annotated[
        str | None,
        typer.Option(
            help="A column of true labels that was carried along: shows where the "
            "model is confidently wrong."
        ),
    ] = None,
    top: Annotated[
        int, typer.Option(help="Words for and against each label that are shown.")
    ] = 20,
    min_texts: Annotated[
        int, typer.Option(help="Leave out words in fewer texts of a label.")
    ] = 5,
) -> None:
    """Show the words that speak for and against every label, and more.

    Also where in a text the scores are, how far methods agree, and where the model is
    confidently wrong. Writes summary.html, words.csv and pictures, PNG and SVG.
    """
    with errors_as_sentences(), options_named(("label_column", "top", "min_texts")):
        from rich.console import Console

        with saying("loading"):
            from captum_attnflow.summary import summarize as summarize_folders

        with saying("reading the results"):
            summary = summarize_folders(folders, label_column, top, min_texts)
        with saying("writing the summary"):
            written = summary.save(folders[0] / "summary" if output is None else output)
        with printing():
            Console(highlight=False, soft_wrap=True).print(summary)
            print(f"\n{written[0]}")
