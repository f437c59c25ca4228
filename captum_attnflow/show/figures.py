"""Figures made without pyplot, shown by notebooks all the same."""

from __future__ import annotations

from IPython.core.getipython import get_ipython
from IPython.core.pylabtools import select_figure_formats
from matplotlib.figure import Figure

_FORMATS = ("image/png", "image/svg+xml", "image/jpeg", "application/pdf")


def shown_in_notebooks(figure: Figure) -> Figure:
    """Let the notebook that runs, if one does, draw figures as values of cells.

    IPython learns to when pyplot starts its backend, and figures of this package leave
    pyplot alone: without this a fresh notebook shows ``<Figure size 640x480 ...>``. A
    format that the notebook has chosen already is left as it is.

    Args:
        figure (Figure): Any figure.

    Returns:
        Figure: The same.
    """
    shell = get_ipython()
    if shell is not None and shell.display_formatter is not None:
        formatters = shell.display_formatter.formatters
        if not any(_draws(formatters[name]) for name in _FORMATS):
            select_figure_formats(shell, {"png"})  # type: ignore[no-untyped-call]
    return figure


def _draws(formatter: object) -> bool:
    try:
        formatter.lookup_by_type(Figure)  # type: ignore[attr-defined]
    except KeyError:
        return False
    return True
