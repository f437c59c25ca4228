"""The command line: the library's functions, from the shell."""

from typing import Annotated

import typer

from captum_attnflow import __version__
from captum_attnflow.cli.explain import explain
from captum_attnflow.cli.study import study
from captum_attnflow.cli.tables import summarize

app = typer.Typer(
    help="Attention flow attributions for transformers.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.command()(explain)
app.command()(study)
app.command()(summarize)


def _print_version(wanted: bool) -> None:
    if wanted:
        print(__version__)
        raise typer.Exit


@app.callback()
def _main(
    version: Annotated[
        bool,
        typer.Option(
            "--version",
            help="Print the version and exit.",
            callback=_print_version,
            is_eager=True,
        ),
    ] = False,
) -> None:
    """Attention flow attributions for transformers."""
