"""What a file imports: when it is imported itself, or ever."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path


def imports(path: Path, *, ever: bool = False) -> Iterator[str]:
    """Names of the modules that a file imports when it is imported.

    Of the package's own names each counts as a module. With ``ever``, imports inside
    functions, such as of what draws pictures, and those for type checkers count, too.
    """
    pending: list[ast.AST] = [ast.parse(path.read_text("utf-8"))]
    while pending:
        node = pending.pop()
        if not ever:
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                continue
            if (
                isinstance(node, ast.If)
                and getattr(node.test, "id", "") == "TYPE_CHECKING"
            ):
                pending.extend(node.orelse)
                continue
        if isinstance(node, ast.ImportFrom) and node.module:
            if node.module == "captum_attnflow":
                yield from (f"captum_attnflow.{alias.name}" for alias in node.names)
            else:
                yield node.module
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        pending.extend(ast.iter_child_nodes(node))
