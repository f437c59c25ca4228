"""Every command and code block of the README and of its pages runs as printed."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text("utf-8")
PAGES = [ROOT / "README.md", *sorted((ROOT / "tutorials").glob("*.md"))]
MOST_LINES = 220


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", page.read_text("utf-8"), re.DOTALL)


@pytest.mark.parametrize(
    "page",
    [page for page in PAGES if blocks(page, "python")],
    ids=lambda page: page.stem,
)
def test_python_blocks_run_one_after_the_other(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    scope: dict[str, object] = {}
    for block in blocks(page, "python"):
        exec(compile(block, page.name, "exec"), scope)


# The two install commands are run by .ci/run, in a fresh environment. What stands on
# two pages runs once.
COMMANDS = list(
    dict.fromkeys(
        line
        for page in PAGES
        for block in blocks(page, "sh")
        for line in block.splitlines()
        if not line.startswith("pip install")
    )
)


def test_readme_has_commands_beside_the_two_that_install():
    assert sum(block.count("captum-attnflow ") for block in blocks(PAGES[0], "sh")) >= 3
    assert sum(line.startswith("pip install") for line in README.splitlines()) == 2


def test_readme_is_read_in_one_sitting():
    assert len(README.splitlines()) <= MOST_LINES


@pytest.mark.parametrize("command", COMMANDS)
def test_shell_commands_run(command, tmp_path):
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    done = subprocess.run(
        ["bash", "-c", command],
        cwd=tmp_path,
        env={**os.environ, "PATH": path},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_relative_links_lead_somewhere(page):
    links = re.findall(r"\]\((?!http)([^)#\s]+)\)", page.read_text("utf-8"))
    for link in links:
        assert (page.parent / link).exists(), link
    assert links or page != PAGES[0]
