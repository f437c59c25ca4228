"""Collects the races of a run and prints them at its end."""

from __future__ import annotations

from pathlib import Path

import pytest
from race import Race
from race import race as run_race

RACES = pytest.StashKey[list[Race]]()


def pytest_addoption(parser) -> None:
    parser.addoption(
        "--plot",
        type=Path,
        help="draw the growth with tokens and layers into this PNG file",
    )

    parser.addoption(
        "--every",
        type=int,
        default=1,
        help="of the prompts of known evidence take every n-th",
    )


def pytest_configure(config) -> None:
    config.stash[RACES] = []


@pytest.fixture
def race(request):
    """Run a race and keep it for the summary."""

    def run(*arguments, **options) -> Race:
        result = run_race(*arguments, **options)
        request.config.stash[RACES].append(result)
        return result

    return run


def pytest_terminal_summary(terminalreporter, config) -> None:
    terminalreporter.section("median times, and ratios within a round (from - to)")
    for finished in config.stash[RACES]:
        for line in finished.lines():
            terminalreporter.write_line(line)
