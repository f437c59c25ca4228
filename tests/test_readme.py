"""Every command and code block of the README runs as printed."""

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

README = (Path(__file__).parents[1] / "README.md").read_text("utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


def test_python_blocks_run_one_after_the_other(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    scope: dict[str, object] = {}
    for block in blocks("python"):
        exec(compile(block, "README.md", "exec"), scope)


# The two install commands are run by .ci/run, in a fresh environment.
COMMANDS = [
    line
    for block in blocks("sh")
    for line in block.splitlines()
    if not line.startswith("pip install")
]
# A process of its own imports torch for seconds: pipes and the help have one.
IN_A_SHELL = [line for line in COMMANDS if " | " in line or "--help" in line]
IN_THIS_PROCESS = [line for line in COMMANDS if line not in IN_A_SHELL]


def test_readme_has_commands_beside_the_two_that_install():
    assert len(IN_A_SHELL) >= 2
    assert len(IN_THIS_PROCESS) >= 3
    assert sum(line.startswith("pip install") for line in README.splitlines()) == 2


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


def test_relative_links_lead_somewhere():
    root = Path(__file__).parents[1]
    links = re.findall(r"\]\((?!http)([^)#]+)\)", README)
    assert links
    for link in links:
        assert (root / link).exists(), link
