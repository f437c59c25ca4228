"""Prints the links of a built site that lead nowhere, without a network.

Run ``python .ci/dead_links.py FOLDER``. Files and anchors of the site are looked up;
links to other hosts are not, but nothing that a page loads may come from there.
"""

from __future__ import annotations

import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit


class Page(HTMLParser):
    """What a page links to, what it loads and what can be linked to in it."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.links: set[str] = set()
        self.loaded: set[str] = set()
        self.anchors: set[str] = set()
        self.feed(path.read_text("utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Keep what a tag links to, loads or names; the parser calls it."""
        values = {name: value for name, value in attrs if value}
        self.anchors |= {values[name] for name in ("id", "name") if name in values}
        self.loaded |= {values[name] for name in ("src", "data") if name in values}
        if "href" in values:
            (self.loaded if tag == "link" else self.links).add(values["href"])


def dead_links(folder: Path) -> list[str]:
    """Return what leads nowhere, each with its page.

    Args:
        folder (Path): The built site.
    """
    pages = {path.resolve(): Page(path) for path in folder.rglob("*.html")}
    dead = []
    for path, page in pages.items():
        for link in sorted(page.links | page.loaded):
            parts = urlsplit(link)
            if parts.scheme == "data":
                continue
            if parts.scheme or parts.netloc:
                if link in page.loaded:
                    dead.append(f"{path}: {link} is loaded from another host")
                continue
            target = (
                (path.parent / unquote(parts.path)).resolve() if parts.path else path
            )
            anchor = unquote(parts.fragment)
            if not target.is_file():
                dead.append(f"{path}: {link} is no file")
            elif anchor and target in pages and anchor not in pages[target].anchors:
                dead.append(f"{path}: {link} is no anchor")
    return dead


if __name__ == "__main__":
    found = dead_links(Path(sys.argv[1]))
    print(*found, sep="\n", end="\n" if found else "")
    sys.exit(bool(found))
