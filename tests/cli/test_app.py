from __future__ import annotations

from importlib.metadata import version

import pytest
from typer.testing import CliRunner

from captum_attnflow.cli import app


def test_version_is_that_of_the_installed_package():
    result = CliRunner().invoke(app, ["--version"])
    assert (result.exit_code, result.stdout) == (0, version("captum-attnflow") + "\n")


@pytest.mark.parametrize("command", ["explain", "study"])
def test_help_describes_the_options(command):
    result = CliRunner().invoke(app, [command, "--help"], terminal_width=200)
    assert result.exit_code == 0
    assert "--method" in result.stdout
