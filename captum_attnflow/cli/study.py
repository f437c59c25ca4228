"""``captum-attnflow study``: the faithfulness of methods, compared.

What loads torch is imported when the command runs, not for its help text.
"""

from __future__ import annotations

import sys
from inspect import signature
from pathlib import Path
from typing import Annotated

import typer

from captum_attnflow._checks import DTYPES, counted
from captum_attnflow._warnings import stopped_in_words
from captum_attnflow.cli._streams import errors_as_sentences, options_named, printing
from captum_attnflow.runs.data import INPUT_FORMATS
from captum_attnflow.runs.folder import LineFile
from captum_attnflow.runs.sharing import ENGINES, read_part
from captum_attnflow.study import METHODS, REMOVALS, Study
from captum_attnflow.study.settings import BETTER

_METHODS = (
    "generalized-attention-flow",
    "relevance-flow",
    "attention-rollout",
    "last-layer-attention",
    "chefer-relevance",
    "layer-integrated-gradients",
    "input-x-gradient",
    "random",
)


def study(
    data: Annotated[
        str,
        typer.Option(
            help="Texts: a .tsv, .csv, .jsonl or .parquet file, a hub data set, or - "
            "for standard input. Rows without a text are left out and counted."
        ),
    ],
    output: Annotated[
        Path,
        typer.Option(
            help="Folder of the results. A study that stopped there is continued."
        ),
    ],
    model: Annotated[
        list[str] | None,
        typer.Option(
            help="Model folder or hub id; may be repeated; the model in the package by "
            "default.",
            show_default=False,
        ),
    ] = None,
    method: Annotated[
        list[str] | None,
        typer.Option(
            help=f"May be repeated; {', '.join(_METHODS)} by default. All: "
            f"{', '.join(METHODS)}.",
            show_default=False,
        ),
    ] = None,
    against: Annotated[
        str | None,
        typer.Option(help="A method; intervals of the paired differences to it."),
    ] = None,
    text_column: Annotated[str, typer.Option(help="Column of the texts.")] = "text",
    label_column: Annotated[
        str | None, typer.Option(help="Column of labels, for the models' accuracy.")
    ] = None,
    input_format: Annotated[
        str | None,
        typer.Option(
            help=f"One of: {', '.join(INPUT_FORMATS)}; by the file's ending or "
            "standard input's first character by default.",
            show_default=False,
        ),
    ] = None,
    limit: Annotated[
        int | None, typer.Option(help="Only a random sample of N texts.")
    ] = None,
    split: Annotated[str, typer.Option(help="Split of a hub data set.")] = "test",
    subset: Annotated[
        str | None, typer.Option(help="Subset of a hub data set.")
    ] = None,
    metric: Annotated[
        list[str] | None,
        typer.Option(
            help=f"May be repeated; {', '.join(Study.metrics)} by default. All: "
            f"{', '.join(BETTER)}.",
            show_default=False,
        ),
    ] = None,
    removal: Annotated[
        list[str] | None,
        typer.Option(
            help=f"May be repeated; {' and '.join(REMOVALS)} by default.",
            show_default=False,
        ),
    ] = None,
    reference_token: Annotated[
        str,
        typer.Option(help="What replaces a token: mask, pad, unk, or as written."),
    ] = Study.reference_token,
    seed: Annotated[int, typer.Option(help="Seed of all random numbers.")] = 0,
    batch_size: Annotated[
        int, typer.Option(help="Texts attributed together.")
    ] = Study.batch_size,
    device: Annotated[
        str | None,
        typer.Option(help="Where the models run, such as cuda.", show_default=False),
    ] = None,
    dtype: Annotated[
        str, typer.Option(help=f"Of the models' weights; one of: {', '.join(DTYPES)}.")
    ] = Study.dtype,
    device_map: Annotated[
        str | None,
        typer.Option(
            help="Split each model over devices, such as auto.", show_default=False
        ),
    ] = None,
    part: Annotated[
        str | None,
        typer.Option(
            help="i/n, to do a part of the texts only; auto asks torchrun's or SLURM's "
            "variables. The part that ends last merges all and writes the table.",
            show_default=False,
        ),
    ] = None,
    engine: Annotated[
        str, typer.Option(help=f"One of: {', '.join(ENGINES)}.")
    ] = Study.engine,
    workers: Annotated[
        int,
        typer.Option(help="Of ray: processes of one thread that each hold the models."),
    ] = Study.workers,
    gpus_per_worker: Annotated[
        float, typer.Option(help="Of ray: GPUs of each.")
    ] = Study.gpus_per_worker,
) -> None:
    """Compare attribution methods on texts by the faithfulness of their scores.

    The predicted class of each text is attributed; its probability is measured as
    tokens are replaced or deleted. Writes a table (Markdown, CSV, LaTeX), a plot, all
    results per text and a manifest into the output folder.
    """
    with (
        errors_as_sentences(),
        stopped_in_words(lambda: _how_far(output)),
        options_named(signature(study).parameters),
    ):
        from transformers.utils import logging as transformers_logging

        from captum_attnflow.demo import DEMO_MODEL_PATH
        from captum_attnflow.study import DataSource, run_study
        from captum_attnflow.study.table import to_markdown

        transformers_logging.disable_progress_bar()
        n_kept = _n_done(output)
        table = run_study(
            Study(
                models=tuple(model or [str(DEMO_MODEL_PATH)]),
                data=DataSource(
                    data,
                    text_column,
                    label_column,
                    limit,
                    seed,
                    split,
                    subset,
                    input_format,
                ),
                methods=tuple(method or _METHODS),
                output=output,
                against=against,
                metrics=tuple(metric or Study.metrics),
                removals=tuple(removal or REMOVALS),
                reference_token=reference_token,
                seed=seed,
                batch_size=batch_size,
                device=device,
                dtype=dtype,
                device_map=device_map,
                part=read_part(part),
                engine=engine,
                workers=workers,
                gpus_per_worker=gpus_per_worker,
            ),
            show_progress=True,
        )
        kept = f", {n_kept:,} of them from before" if n_kept else ""
        print(
            f"{counted(_n_done(output), 'attribution')}{kept}: {output}",
            file=sys.stderr,
        )
        if table is None:
            print(
                f"part {part} is done. The part that ends last writes the table; any "
                "part that is run again then shows it",
                file=sys.stderr,
            )
            return
        with printing():
            print(to_markdown(table))
        n_failures = sum(row.failures for row in table.rows) // len(removal or REMOVALS)
        if n_failures:
            print(
                f"warning: {counted(n_failures, 'attribution')} failed; the reasons "
                f"are in {output / 'manifest.json'}",
                file=sys.stderr,
            )


def _n_done(output: Path) -> int:
    """Count the attributions of a folder: a line of a file for each."""
    return sum(1 for file in output.glob("results*.jsonl") for _ in LineFile(file))


def _how_far(output: Path) -> str:
    """What an interrupt leaves."""
    return (
        f"stopped with {counted(_n_done(output), 'attribution')} in {output}; the same "
        "command continues there"
    )
