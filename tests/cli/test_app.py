from __future__ import annotations

from importlib.metadata import version

from typer.testing import CliRunner

from captum_attnflow.cli import app


def test_version_is_that_of_the_installed_package():
    result = CliRunner().invoke(app, ["--version"])
    assert (result.exit_code, result.stdout) == (0, version("captum-attnflow") + "\n")
