"""The check of the built site finds what leads nowhere, and nothing else."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

CHECK = Path(__file__).parents[1] / ".ci" / "dead_links.py"


def checked(folder: Path, link: str) -> subprocess.CompletedProcess[str]:
    (folder / "sub").mkdir()
    (folder / "sub" / "page.html").write_text('<h1 id="top">Top</h1>', "utf-8")
    (folder / "style.css").write_text("", "utf-8")
    (folder / "index.html").write_text(f'<p id="here">{link}</p>', "utf-8")
    return subprocess.run(
        [sys.executable, CHECK, folder], capture_output=True, text=True
    )


@pytest.mark.parametrize(
    "link",
    [
        '<a href="sub/page.html#top">',
        '<a href="#here">',
        '<a href="https://captum.ai">',
        '<link rel="stylesheet" href="style.css?v=1">',
        '<img src="data:image/png;base64,AAAA">',
    ],
)
def test_links_that_lead_somewhere_pass(link, tmp_path):
    done = checked(tmp_path, link)
    assert done.returncode == 0, done.stdout
    assert done.stdout == ""


@pytest.mark.parametrize(
    ("link", "said"),
    [
        ('<a href="sub/other.html">', "sub/other.html is no file"),
        ('<a href="sub/page.html#bottom">', "sub/page.html#bottom is no anchor"),
        ('<a href="#there">', "#there is no anchor"),
        ('<img src="picture.png">', "picture.png is no file"),
        ('<script src="https://a.b/c.js">', "https://a.b/c.js is loaded from another"),
        ('<link rel="stylesheet" href="//a.b/c.css">', "is loaded from another host"),
    ],
)
def test_links_that_lead_nowhere_are_named(link, said, tmp_path):
    done = checked(tmp_path, link)
    assert done.returncode == 1
    assert said in done.stdout
