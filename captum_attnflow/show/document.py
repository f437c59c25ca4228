"""The one HTML document that every page of this package is: head, style, policy.

Texts, matrices, flow diagrams, generated text, planes and summaries share its colours,
legend, hover, dark mode, print and narrow windows: ``page.css`` and ``page.js`` here.
"""

from __future__ import annotations

import base64
import hashlib
import io
import json
from collections.abc import Mapping
from importlib.resources import files
from typing import Literal

import matplotlib
from matplotlib.figure import Figure

from captum_attnflow.scored_tokens import escaped

Kind = Literal["texts", "flow", "generated", "summary"]

_DOCUMENT = """<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><title>{title}</title>
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; \
style-src 'unsafe-inline'; script-src {scripts}; img-src data:; base-uri 'none'; \
form-action 'none'">
<link rel="icon" href="data:,">
<style>
{style}</style></head>
<body class="{kind}">
<header>
{header}
</header>
<main>
{body}
</main>
{tail}
</body></html>
"""
_TIP = """<div id="tip" role="tooltip" hidden></div>
<p id="announced" aria-live="polite"></p>"""


def html_document(
    kind: Kind,
    title: str,
    header: str,
    body: str,
    *,
    script: str | None = None,
    data: object = None,
    footer: str = "",
) -> str:
    """Write a page: complete, without references to anything outside.

    Its content security policy allows no request, and of scripts only those inside it,
    by their hashes: what a user's token might smuggle in does not run.

    Args:
        kind (str): What is shown, which the style may differ by.
        title (str): As text.
        header (str): HTML above the content: heading, caption, legend, controls.
        body (str): HTML of the content.
        script (str, optional): JavaScript behind ``page.js``, which offers it
            ``page.tips`` and ``page.walk``; none by default, and no ``page.js``.
        data (optional): What the script reads as JSON from the element ``#data``.
        footer (str): HTML below the content.

    Returns:
        str: A complete HTML document.

    Examples::

        >>> page = html_document("texts", "a < b", "<h1>a &lt; b</h1>", "")
        >>> page.count("<title>a &lt; b</title>"), "<script" in page
        (1, False)
    """
    tail, allowed = [f"<footer>{footer}</footer>"] if footer else [], "'none'"
    if script is not None:
        code = f"\n{_read('page.js')}{script}"
        digest = base64.b64encode(hashlib.sha256(code.encode()).digest()).decode()
        allowed = f"'sha256-{digest}'"
        tail.append(_TIP)
        if data is not None:
            tail.append(
                f'<script type="application/json" id="data">{_as_json(data)}</script>'
            )
        tail.append(f"<script>{code}</script>")
    return _DOCUMENT.format(
        kind=kind,
        title=escaped(title),
        scripts=allowed,
        style=_read("page.css"),
        header=header,
        body=body,
        tail="\n".join(tail),
    )


def legend(signed: bool, counted: str = "its score") -> str:
    """Say what colours mean, of what a picture has.

    Args:
        signed (bool): Whether anything speaks against.
        counted (str): What is the larger, the deeper a colour.

    Returns:
        str: HTML.
    """
    words = ("for it", "against it") if signed else ("counts for it",)
    samples = "".join(
        f'<i class="{kind}" style="--share: 0.8">{name}</i>'
        for kind, name in zip(("for", "against"), words, strict=False)
    )
    return f'<p class="legend">{samples}the deeper, the larger {escaped(counted)}</p>'


def terms(given: Mapping[str, str]) -> str:
    """Write names and what they are, as a list of both."""
    entries = "".join(
        f"<dt>{escaped(name)}</dt><dd>{escaped(value)}</dd>"
        for name, value in given.items()
    )
    return f"<dl>{entries}</dl>"


def figure_image(figure: Figure, described: str, dark: Figure | None = None) -> str:
    """Show a figure inside a page.

    Args:
        figure (Figure): The figure.
        described (str): What it shows, for those who do not see it.
        dark (Figure, optional): The same for dark screens; by default the figure keeps
            its own paper.

    Returns:
        str: HTML.
    """
    source = "" if dark is None else (
        '<source media="screen and (prefers-color-scheme: dark)" '
        f'srcset="{_svg(dark)}">'
    )  # fmt: skip
    return (
        f'<figure><picture>{source}<img src="{_svg(figure)}" '
        f'alt="{escaped(described)}"></picture></figure>'
    )


def figure_bytes(figure: Figure, ending: str) -> bytes:
    """Return a figure as a PNG or SVG file, the same for the same figure."""
    picture = io.BytesIO()
    metadata = {"Date": None} if ending == "svg" else {}
    with matplotlib.rc_context({"svg.hashsalt": "captum-attnflow"}):
        figure.savefig(picture, format=ending, dpi=150, metadata=metadata)
    return picture.getvalue()


def _svg(figure: Figure) -> str:
    encoded = base64.b64encode(figure_bytes(figure, "svg")).decode()
    return f"data:image/svg+xml;base64,{encoded}"


def _as_json(data: object) -> str:
    """Encode data as JSON, as text that no tag can end."""
    return json.dumps(data, allow_nan=False).replace("<", "\\u003c")


def _read(name: str) -> str:
    return (files(__package__) / name).read_text("utf-8")
