"""Figures that notebooks show without pyplot, their colours, labels in any script."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, lru_cache

import numpy as np
import numpy.typing as npt
from IPython.core.getipython import get_ipython
from IPython.core.pylabtools import select_figure_formats
from matplotlib import font_manager
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from rich.cells import cell_len, set_cell_size

from captum_attnflow.scored_tokens import AGAINST_COLOUR, FOR_COLOUR, printable

ORANGE_WHITE_BLUE = LinearSegmentedColormap.from_list(
    "orange-white-blue",
    [[part / 255 for part in c] for c in (AGAINST_COLOUR, (255, 255, 255), FOR_COLOUR)],
)
"""Colours of scores from -1 to 1."""
_FORMATS = ("image/png", "image/svg+xml", "image/jpeg", "application/pdf")


@dataclass(frozen=True)
class Theme:
    """Colours of a picture. Blue and orange are told apart by all kinds of eyes.

    Attributes:
        ink (str): Text and lines.
        paper (str): The background; ``"none"`` lets a page shine through.
        positive (str): What speaks for a label.
        negative (str): What speaks against it.
        muted (str): References, such as an even spread.
        faint (str): Hairlines behind everything else.
        halo (str): Around letters that cross lines: the paper, or the page below it.
    """

    ink: str
    paper: str
    positive: str
    negative: str
    muted: str
    faint: str
    halo: str


_ON_WHITE = ("#2f6690", "#d9541e", "#6b7280", "#c9ced6", "white")
PRINTED = Theme("#1f2937", "white", *_ON_WHITE)
LIGHT = Theme("#1f2937", "none", *_ON_WHITE)
DARK = Theme("#e5e7eb", "none", "#7fb3dd", "#f08a5d", "#9ca3af", "#4b5563", "#14181f")


def shown_in_notebooks(figure: Figure) -> Figure:
    """Let a running notebook draw figures as values of its cells.

    IPython draws figures only after pyplot has started its backend, and this package
    does not use pyplot. Without this function a fresh notebook would show
    ``<Figure size 640x480 ...>``. A format that the notebook has chosen is kept.

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


# Matplotlib's own font of last resort draws a box that only names the script.
_NO_FONT = "Last Resort"
_MEASURED_DPI = 200  # fine enough that hinting is negligible

Label = tuple[str, list[str]]  # what is drawn, in which families
Floats = npt.NDArray[np.float64]


def drawable(text: str) -> Label:
    r"""Find fonts for a label.

    The first installed font that has a character draws it. A character that none has
    is shown as its escape, such as ``\u6620``, instead of an empty box.

    Args:
        text (str): The label.

    Returns:
        Label: The text to draw and its font families.
    """
    families: dict[str, None] = {}
    drawn = ""
    for character in printable(text):
        family = _family_with(character)
        if family is None:
            drawn += character.encode("unicode_escape").decode()
        else:
            families[family] = None
            drawn += character
    return drawn, list(families) or ["sans-serif"]


def shortened(text: str, n_cells: int) -> str:
    """Cut a label to a width in cells, two for a wide character such as CJK."""
    return text if cell_len(text) <= n_cells else set_cell_size(text, n_cells - 1) + "…"


@lru_cache(maxsize=4096)
def _family_with(character: str) -> str | None:
    default = font_manager.findfont(font_manager.FontProperties())
    installed = [font.fname for font in font_manager.fontManager.ttflist]
    for path in [default, *installed]:
        if ord(character) in _characters(path):
            return str(font_manager.get_font(path).family_name)
    return None


@cache
def _characters(path: str) -> frozenset[int]:
    font = font_manager.get_font(path)
    return frozenset(() if _NO_FONT in font.family_name else font.get_charmap())


def label_widths(labels: Sequence[Label], font_size: float) -> Floats:
    """Measure labels.

    Args:
        labels (sequence): Texts with their families, as :func:`drawable` gives them.
        font_size (float): In points.

    Returns:
        ndarray: Shape ``(N,)``, their widths in inches.
    """
    figure = Figure(dpi=_MEASURED_DPI)
    FigureCanvasAgg(figure)
    texts = [
        figure.text(0, 0, text, family=families, fontsize=font_size, parse_math=False)
        for text, families in labels
    ]
    widths = [text.get_window_extent().width for text in texts]
    return np.array(widths, float) / _MEASURED_DPI
