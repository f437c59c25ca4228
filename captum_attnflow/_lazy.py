"""Names and rooms of a package, imported when they are first read (PEP 562)."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module


def lazy_names(
    package: str, modules: Mapping[str, Sequence[str]]
) -> tuple[Callable[[str], object], Callable[[], list[str]]]:
    """Make a package's ``__getattr__`` and ``__dir__``.

    To import torch takes seconds. A package that imports its names on demand costs
    nothing where only a version or a help text is wanted.

    Args:
        package (str): Its ``__name__``.
        modules (mapping): By module, the names that it defines.

    Returns:
        tuple: ``__getattr__`` and ``__dir__``, for the package to assign.

    Examples::

        >>> import captum_attnflow
        >>> captum_attnflow.SciPySolver.__name__
        'SciPySolver'
    """
    module_of = {name: module for module, names in modules.items() for name in names}

    def import_room(name: str) -> object:
        module = f"{package}.{name}"
        try:
            if not name.startswith("_"):
                return import_module(module)
        except ModuleNotFoundError as error:
            if error.name != module:  # one that the room needs
                raise
        raise AttributeError(f"module {package!r} has no attribute {name!r}")

    def import_name(name: str) -> object:
        if name in module_of:
            found = getattr(import_module(module_of[name]), name)
        else:
            found = import_room(name)
        # Python asks here only for names that the package does not hold.
        setattr(sys.modules[package], name, found)
        return found

    def list_names() -> list[str]:
        return sorted({*vars(sys.modules[package]), *module_of})

    return import_name, list_names
