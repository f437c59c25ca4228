"""What an installer and an index are told, against what is in the files."""

from __future__ import annotations

import re
import sys
from functools import cache
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
from entered_files import PACKAGE
from module_imports import imports

from captum_attnflow import __version__
from captum_attnflow.flow.solvers.barrier.compilation import _SOURCES

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
CITATION = (ROOT / "CITATION.cff").read_text("utf-8")
FILES = sorted(PACKAGE.rglob("*.py"))
# Imported under one name, released under another; the rest is the same or installed.
RELEASED_AS = {"PIL": "pillow", "IPython": "ipython", "sklearn": "scikit-learn"}


def normalised(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def names(requirements: list[str]) -> set[str]:
    found = (re.match(r"[\w.-]+", requirement) for requirement in requirements)
    return {normalised(name[0]) for name in found if name}


REQUIRED = names(PROJECT["dependencies"])
OPTIONAL = {
    extra: names(requirements)
    for extra, requirements in PROJECT["optional-dependencies"].items()
}
# What an extra for users adds; the others are for those who work on the project.
FOR_USERS = {"compiled", "ray", "study", "tables"}
ADDED = set().union(*(OPTIONAL[extra] for extra in FOR_USERS)) - REQUIRED


@cache
def distributions() -> dict[str, list[str]]:
    return {**packages_distributions()}


def released(modules: set[str]) -> set[str]:
    """Names under which modules that are not Python's own are installed."""
    tops = {module.split(".")[0] for module in modules}
    tops -= {*sys.stdlib_module_names, "captum_attnflow"}
    return {
        normalised(RELEASED_AS.get(top) or distributions().get(top, [top])[0])
        for top in tops
    }


def module_name(path: Path) -> str:
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts).removesuffix(".__init__")


AT_ONCE = {path: set(imports(path)) for path in FILES}
EVER = {path: set(imports(path, ever=True)) for path in FILES}
# These files cannot be imported without an extra, nor can those that import them.
BEHIND_EXTRAS: list[Path] = []
while found := [
    path
    for path in FILES
    if path not in BEHIND_EXTRAS
    and (
        released(AT_ONCE[path]) & ADDED
        or AT_ONCE[path] & {module_name(other) for other in BEHIND_EXTRAS}
    )
]:
    BEHIND_EXTRAS += found


@pytest.mark.parametrize("path", FILES, ids=lambda path: module_name(path))
def test_what_a_file_imports_is_declared(path):
    assert released(AT_ONCE[path]) <= REQUIRED | (
        ADDED if path in BEHIND_EXTRAS else set()
    )
    assert released(EVER[path]) <= REQUIRED | ADDED


def test_what_needs_an_extra_is_imported_inside_functions_alone():
    """Of what is compiled alone: all other files can be imported without extras."""
    assert {path.stem for path in BEHIND_EXTRAS} == {
        "dinic_kernels",
        "numba_compiled",
        "numba_edges",
        "numba_factors",
        "numba_gradients",
        "numba_passes",
    }
    assert {*BEHIND_EXTRAS} < {*_SOURCES}


def test_what_is_declared_is_imported():
    used = released(set().union(*EVER.values()))
    assert used >= REQUIRED


def test_extras_that_messages_and_pages_name_exist():
    pages = [*FILES, ROOT / "README.md", *(ROOT / "tutorials").glob("*.md")]
    named = {
        extra
        for page in pages
        for extras in re.findall(
            r"(?:captum-attnflow|[\"'\s]\.)\[([a-z,]+)\]", page.read_text("utf-8")
        )
        for extra in extras.split(",")
    }
    assert {"test", "study"} <= named <= set(OPTIONAL)


def test_everything_required_is_pinned():
    lines = (ROOT / "constraints.txt").read_text("utf-8").splitlines()
    assert names([line for line in lines if not line.startswith("#")]) >= REQUIRED


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("version", __version__),
        ("license", PROJECT["license"]),
        ("- name", PROJECT["authors"][0]["name"]),
    ],
)
def test_the_citation_says_the_same_as_the_package(key, value):
    cited = re.search(rf"^ *{key}: (.*)$", CITATION, re.MULTILINE)
    assert cited[1] == value


def test_lowest_python_is_the_first_of_the_classifiers():
    versions = [
        classifier.rpartition(" ")[2]
        for classifier in PROJECT["classifiers"]
        if re.fullmatch(r"Programming Language :: Python :: 3\.\d+", classifier)
    ]
    assert PROJECT["requires-python"] == f">={versions[0]}"
