"""The command line: the library's functions, from the shell."""

import typer

from captum_attnflow.cli.explain import explain
from captum_attnflow.cli.study import study

app = typer.Typer(
    help="Attention flow attributions for transformers.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.command()(explain)
app.command()(study)


@app.callback()
def _main() -> None:
    """Attention flow attributions for transformers."""
