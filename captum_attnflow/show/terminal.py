"""Any attribution that shows itself, as text for a terminal."""

from __future__ import annotations

from typing import Protocol

from rich.text import Text


class ShownInTerminal(Protocol):
    """What rich prints as text."""

    def __rich__(self) -> Text: ...


def terminal_text(attribution: ShownInTerminal) -> Text:
    """Render an attribution for a terminal.

    The deeper the colour behind a token, the higher its share of the text's largest
    score, green for the target and red against it. Characters that are not printable
    are shown as escapes.

    Args:
        attribution (TextAttribution or result of ``explain()``): The attribution.

    Returns:
        Text: What ``rich.print(attribution)`` prints.
    """
    return attribution.__rich__()
