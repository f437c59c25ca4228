"""``captum-attnflow summarize``: what the explanations of a data set look like.

What loads torch is imported when the command runs, not for its help text.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from captum_attnflow.cli._messages import (
    errors_as_sentences,
    options_named,
    printing,
    saying,
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
