"""Every command and code block of the README and of its pages runs as printed."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from captum_attnflow.cli import app

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
# A process of its own imports torch for seconds: pipes and the help have one.
IN_A_SHELL = [line for line in COMMANDS if " | " in line or "--help" in line]
IN_THIS_PROCESS = [line for line in COMMANDS if line not in IN_A_SHELL]


def test_readme_has_commands_beside_the_two_that_install():
    assert len(IN_A_SHELL) >= 2
    assert len(IN_THIS_PROCESS) >= 3
    assert sum(line.startswith("pip install") for line in README.splitlines()) == 2


def test_readme_is_read_in_one_sitting():
    assert len(README.splitlines()) <= MOST_LINES


@pytest.mark.parametrize("command", IN_A_SHELL)
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


@pytest.mark.parametrize("command", IN_THIS_PROCESS)
def test_commands_run(command, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for step in command.split(" && "):
        program, *arguments = shlex.split(step)
        if program == "captum-attnflow":
            result = CliRunner().invoke(app, arguments)
            assert result.exit_code == 0, result.output
            assert result.output
        else:
            subprocess.run(["bash", "-c", step], check=True)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_relative_links_lead_somewhere(page):
    links = re.findall(r"\]\((?!http)([^)#\s]+)\)", page.read_text("utf-8"))
    for link in links:
        assert (page.parent / link).exists(), link
    assert links or page != PAGES[0]
