"""Sphinx's settings: README, tutorials and the docstrings as one site.

Docstrings are written in reStructuredText with Google's sections, as Captum's are. The
sources lie where code hosts show them: this folder holds settings alone, and the pages
of the reference, which :mod:`reference` writes.
"""

from __future__ import annotations

import sys
from pathlib import Path

from docutils import nodes
from latex2mathml.converter import convert
from sphinx.application import Sphinx
from sphinx.writers.html5 import HTML5Translator

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(Path(__file__).parent), str(ROOT)]

import reference  # noqa: E402

from captum_attnflow import __version__  # noqa: E402

project = "captum-attnflow"
author = "The captum-attnflow developers"
version = release = __version__
extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.githubpages",
    "sphinx.ext.napoleon",
]
root_doc = "README"
include_patterns = [
    "CHANGELOG.md",
    "README.md",
    "captum_attnflow/demo/sentiment/README.md",
    ".docs/reference/*.rst",
    "tutorials/*.ipynb",
    "tutorials/*.md",
]

html_theme = "furo"
html_title = f"captum-attnflow {release}"
html_show_sourcelink = False
html_copy_source = False

nb_execution_mode = "off"  # notebooks come with their output, and tests run them
myst_heading_anchors = 3  # README links to its own sections, as code hosts allow

autodoc_member_order = "bysource"
autodoc_typehints = "none"  # each argument's description says its type and shape
napoleon_use_param = False  # the description of a module may have arguments, too
napoleon_use_rtype = False
napoleon_use_ivar = True

html_math_renderer = "mathml"

# README has no such list: on a code host the folder is one.
CONTENTS = """
```{toctree}
:hidden:
:caption: Tutorials
:glob:

tutorials/*
```

```{toctree}
:hidden:
:caption: Reference
:glob:

.docs/reference/*
```

```{toctree}
:hidden:
:caption: Project

CHANGELOG
captum_attnflow/demo/sentiment/README
```
"""


def add_contents(app: Sphinx, document: str, source: list[str]) -> None:
    """Give the first page the list of all others."""
    if document == root_doc:
        source[0] += CONTENTS


def write_formula(self: HTML5Translator, node: nodes.Element) -> None:
    """Write MathML, which browsers draw without a script and without a network."""
    block = isinstance(node, nodes.math_block)
    self.body.append(convert(node.astext(), display="block" if block else "inline"))
    raise nodes.SkipNode


def copy_first_page(app: Sphinx, error: Exception | None) -> None:
    """Let hosts find the first page, whose source has to be README."""
    if error is None:
        first = app.outdir / f"{root_doc}.html"
        (app.outdir / "index.html").write_bytes(first.read_bytes())


def setup(app: Sphinx) -> None:
    """Connect what Sphinx has no setting for."""
    app.add_html_math_renderer("mathml", (write_formula, None), (write_formula, None))
    app.connect("builder-inited", reference.write_pages)
    app.connect("source-read", add_contents)
    app.connect("missing-reference", reference.find_elsewhere)
    app.connect("build-finished", copy_first_page)
