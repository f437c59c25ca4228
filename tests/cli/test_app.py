from __future__ import annotations

import subprocess
import sys
from importlib.metadata import version

import pytest
from typer.testing import CliRunner

from captum_attnflow.cli import app


def test_version_is_that_of_the_installed_package():
    result = CliRunner().invoke(app, ["--version"])
    assert (result.exit_code, result.stdout) == (0, version("captum-attnflow") + "\n")


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["--version"], 0),
        (["--help"], 0),
        (["explain", "--help"], 0),
        (["study", "--help"], 0),
        (["summarize", "--help"], 0),
        (["study", "--hepl"], 2),
        (["summarize"], 2),
        (["explain", "--task", "nothing", "so dull"], 2),
    ],
)
def test_help_and_wrong_options_load_no_torch(arguments, code):
    written = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "captum_attnflow.cli", *arguments],
        capture_output=True,
        text=True,
        check=False,
    )
    assert written.returncode == code
    loaded = {line.rpartition("|")[2].strip() for line in written.stderr.splitlines()}
    assert "typer" in loaded
    assert not loaded & {"torch", "transformers", "captum", "matplotlib"}
