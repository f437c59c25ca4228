"""The pages of the reference: one per room, each public name and each module once.

Rooms are found in the package, and their names in ``__all__``, so that no list here has
to be kept. A name is described in its innermost room, under the shortest path by which
it can be imported: ``captum_attnflow.RelevanceFlow`` on the page of
``captum_attnflow.attr``. Names without a description are warned of.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from functools import cache
from importlib import import_module
from pathlib import Path
from pkgutil import resolve_name, walk_packages
from types import ModuleType
from typing import Any, NamedTuple, get_origin

from docutils import nodes
from sphinx.addnodes import pending_xref
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment
from sphinx.pycode import ModuleAnalyzer
from sphinx.util import logging

import captum_attnflow

PAGES = Path(__file__).parent / "reference"
LOG = logging.getLogger(__name__)


class Name(NamedTuple):
    """A public name: how it is imported, what it is, and where it is described."""

    path: str
    value: Any
    page: str
    text: list[str]


@cache
def modules() -> dict[str, ModuleType]:
    """All modules of the package by their names; private ones and scripts are not."""
    found = walk_packages(captum_attnflow.__path__, "captum_attnflow.")
    public = [name for _, name, _ in found if "._" not in name]
    return {name: import_module(name) for name in ["captum_attnflow", *public]}


@cache
def rooms() -> dict[str, list[str]]:
    """The modules that say what is public, outermost first."""
    found = {
        name: list(module.__all__)
        for name, module in modules().items()
        if hasattr(module, "__all__")
    }
    return dict(sorted(found.items(), key=lambda room: (room[0].count("."), room[0])))


def description(name: str, value: Any) -> list[str]:
    """Lines of a docstring; of a value the string below it in the file that sets it."""
    if inspect.isroutine(value) or inspect.isclass(value):
        return (value.__doc__ or "").splitlines()
    for module, holder in modules().items():
        if vars(holder).get(name) is value:
            written = ModuleAnalyzer.for_module(module).find_attr_docs()
            if ("", name) in written:
                return written["", name]
    return []


@cache
def public_names() -> dict[str, Name]:
    """Every public name once, by the shortest path that leads to it."""
    found: dict[int, Name] = {}
    for room, names in rooms().items():
        for name in names:
            if name.startswith("__"):
                continue
            value = getattr(modules()[room], name)
            # Rooms come from the outermost to the innermost: the first path is the
            # shortest, the last page the closest.
            path = found[id(value)].path if id(value) in found else f"{room}.{name}"
            found[id(value)] = Name(path, value, room, description(name, value))
    return {name.path: name for name in found.values()}


@cache
def aliases() -> dict[str, str]:
    """For every path in the package that leads to a public name, that name's path."""
    path_of = {id(name.value): name.path for name in public_names().values()}
    return {
        f"{module}.{name}": path_of[id(value)]
        for module, holder in modules().items()
        for name, value in vars(holder).items()
        if id(value) in path_of
    }


def undocumented(name: Name) -> Iterator[str]:
    """Paths of the name and of its own public methods that lack a description."""
    if not "".join(name.text).strip():
        yield name.path
    if inspect.isclass(name.value):
        for method, value in vars(name.value).items():
            described = inspect.isroutine(value) or isinstance(value, property)
            if described and not method.startswith("_") and not inspect.getdoc(value):
                yield f"{name.path}.{method}"


def entry(name: Name) -> str:
    """What Sphinx is to put on the page for a name."""
    module, _, last = name.path.rpartition(".")
    if inspect.isclass(name.value):
        kind = "exception" if issubclass(name.value, BaseException) else "class"
        return f".. auto{kind}:: {name.path}\n   :members:\n   :show-inheritance:\n"
    if inspect.isroutine(name.value):
        return f".. autofunction:: {name.path}\n"
    lines = [f".. py:data:: {last}", f"   :module: {module}"]
    if get_origin(name.value) is not None:
        lines.append(f"   :value: {name.value!r}".replace("typing.", ""))
    return "\n".join([*lines, "", *(f"   {line}" for line in name.text), ""])


def module_entry(module: str) -> str:
    """What Sphinx is to put on a page for the description of a module."""
    # A function may be named like the file that holds it.
    no_index = "   :no-index:\n" if module in public_names() else ""
    return f".. automodule:: {module}\n{no_index}"


def room_of(module: str) -> str:
    """The innermost room that a module lies in."""
    while module not in rooms():
        module = module.rpartition(".")[0]
    return module


def write_pages(app: Sphinx) -> None:
    """Write a page for every room, and warn of names without a description."""
    PAGES.mkdir(exist_ok=True)
    pages = {}
    for room, exported in rooms().items():
        here = [name for name in public_names().values() if name.page == room]
        elsewhere = sorted(
            {aliases()[f"{room}.{name}"] for name in exported if name[:2] != "__"}
            - {name.path for name in here}
        )
        title = room.removeprefix("captum_attnflow.")
        parts = [title, "=" * len(title), "", module_entry(room)]
        if elsewhere:
            parts += ["From here can be imported, too:", ""]
            parts += [*(f"- :obj:`{path}`" for path in elsewhere), ""]
        parts += [entry(name) for name in here]
        inside = [module for module in modules() if room_of(module) == room != module]
        if inside:
            parts += ["Modules", "-------", ""]
        for module in inside:
            title = f"``{module}``"
            parts += [title, "^" * len(title), "", module_entry(module)]
        pages[PAGES / f"{room}.rst"] = "\n".join(parts)
    for old in set(PAGES.glob("*.rst")) - set(pages):
        old.unlink()
    for page, text in pages.items():
        # Sphinx reads anew what is newer.
        if not page.exists() or page.read_text("utf-8") != text:
            page.write_text(text, "utf-8")
    for name in public_names().values():
        for path in undocumented(name):
            LOG.warning("%s is public and has no description", path)


@cache
def holders() -> dict[str, list[str]]:
    """For every name in the package, the modules in which it stands."""
    found: dict[str, list[str]] = {}
    for module, holder in modules().items():
        for name in vars(holder):
            found.setdefault(name, []).append(module)
    return found


def leads_somewhere(path: str) -> bool:
    """Whether a dotted path can be imported, as of another package."""
    try:
        value = resolve_name(path)
    except (AttributeError, ImportError, ValueError):
        outer, _, field = path.rpartition(".")
        # A field without a default is no attribute of its class.
        return bool(outer) and field in fields_of(outer)
    return value is not None or path.endswith("None")


def fields_of(path: str) -> dict[str, Any]:
    """The annotated fields of the class at a dotted path, if there is one."""
    try:
        return inspect.get_annotations(resolve_name(path))
    except (AttributeError, ImportError, TypeError, ValueError):
        return {}


def paths_of(node: pending_xref) -> Iterator[str]:
    """Full paths that a reference may mean, as Sphinx looks them up and beyond."""
    target = node["reftarget"]
    module, owner = node.get("py:module"), node.get("py:class")
    yield target
    yield f"builtins.{target}"
    if module:
        yield f"{module}.{target}"
    if module and owner:
        yield f"{module}.{owner}.{target}"
    # A docstring is shown in a room and names what its own file holds.
    for holder in holders().get(target.partition(".")[0], ()):
        yield f"{holder}.{target}"


def public_path(path: str) -> str | None:
    """The path under which the reference describes a thing or a member of it."""
    outer, _, member = path.rpartition(".")
    if path in aliases():
        return aliases()[path]
    return f"{aliases()[outer]}.{member}" if outer in aliases() else None


def find_elsewhere(
    app: Sphinx, env: BuildEnvironment, node: pending_xref, content: nodes.Element
) -> nodes.Element | None:
    """Resolve a path that docstrings use to the public name of the same thing.

    A path that leads to nothing is warned of, unless it is the type of an argument:
    these are words such as "optional" as often as names.
    """
    if node.get("refdomain") != "py":
        return None
    paths = list(paths_of(node))
    for path in filter(None, map(public_path, paths)):
        found: nodes.Element | None = env.domains.python_domain.resolve_xref(
            env, node["refdoc"], app.builder, "obj", path, node, content
        )
        if found is not None:
            return found
    if not node.get("refspecific") and not any(map(leads_somewhere, paths)):
        LOG.warning("%s leads to nothing", node["reftarget"], location=node)
    return None
